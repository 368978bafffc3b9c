"""Does a policy read the words, or the room? Success by words, and when the words change.

`true`: as taught. `held_out`: sentences never taught. `empty`: no words. `contradictory`: two goals
at once, of which the first counts. `other_words`: the words of another goal; what the room was set
up for counts, so a policy that reads words fails it. Where one start serves several goals, `swap`:
told B where it was set up for A, it does B (`does_told`), and not A instead (`does_other`).
`passes_other` also counts A where it was done on the way to B, as experts do too.
A refused goal is a failure, except where the words are meant to be no help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.evaluation.intervals import wilson
from lmdiff.evaluation.policy_rollout import AT_ONCE, PolicyEpisode, Sampling, run_policy
from lmdiff.evaluation.sharing import noise_seed, over_ranks
from lmdiff.goals.descriptions import Split
from lmdiff.goals.sayings import Sayings
from lmdiff.pipelines.policy_pipeline import PolicyPipeline
from lmdiff.tasks.world import World
from lmdiff.tasks.worlds import make_world

Report = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """One episode to run."""

    seed: int
    goal: str
    """What counts."""
    words: str
    watched: str = ""
    """What should not be done instead."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    success: bool
    strayed: bool
    understood: bool
    steps: int
    milliseconds: float


@cache
def world_of(name: str, slot: int = 0) -> World:
    """A world to run episodes in, one for each that runs at the same time."""
    return make_world(name)


def run_told(
    pipe: PolicyPipeline,
    told: Sequence[Told],
    sampling: Sampling,
    seed: int,
    *,
    refuse: bool = True,
) -> list[Outcome]:
    """Run episodes, shared among ranks; goals that are refused fail without a step."""

    def run(mine: list[int]) -> list[list[float]]:
        generator = torch.Generator(pipe.device).manual_seed(noise_seed(seed))
        results = {index: [0.0] * 5 for index in mine}
        runnable = [i for i in mine if not refuse or understands(pipe, told[i].words)]
        for first in range(0, len(runnable), AT_ONCE):
            group = runnable[first : first + AT_ONCE]
            episodes = [
                PolicyEpisode(
                    world_of(pipe.config["world"], slot),
                    told[index].seed,
                    told[index].goal,
                    told[index].words,
                    told[index].watched,
                )
                for slot, index in enumerate(group)
            ]
            run_policy(pipe, episodes, sampling, generator)
            for index, e in zip(group, episodes, strict=True):
                spent = float(np.median(e.milliseconds))
                results[index] = [e.success, e.strayed, True, e.steps, spent]
        return [results[index] for index in mine]

    return [
        Outcome(bool(success), bool(strayed), bool(known), int(steps), float(spent))
        for success, strayed, known, steps, spent in over_ranks(len(told), run)
    ]


def understands(pipe: PolicyPipeline, words: str) -> bool:
    """Whether the words are of the kind that was taught."""
    try:
        pipe.understand(words)
    except GoalNotUnderstood:
        return False
    return True


def draw_told(
    world: World, sayings: Sayings, split: Split, count: int, seed: int, *, training: bool = False
) -> list[Told]:
    """`count` episodes: goals in turn, or what drawn scenes ask for; drawn sentences.

    The starts of `training` are never those of an evaluation.
    """
    rng = np.random.default_rng([seed, 7])
    told = []
    for index in range(count):
        start = _start(rng, training)
        if world.swappable:
            goal = world.reset(seed=start)[1]["goal"]
        else:
            goal = world.goals[index % len(world.goals)]
        texts = sayings.of(goal, split)
        if not texts:
            raise UserError(f"The prompts have no {split} sentence for the goal {goal!r}.")
        told.append(Told(start, goal, texts[rng.integers(len(texts))]))
    return told


def _start(rng: np.random.Generator, training: bool) -> int:
    """A start's seed: odd for evaluations, even for what is learned from."""
    return 2 * int(rng.integers(2**30)) + (not training)


def _possible(world: World, start: int) -> tuple[str, ...]:
    world.reset(seed=start)
    return world.guard.call(world.possible) or world.goals


def policy_report(
    pipe: PolicyPipeline,
    world: World,
    sayings: Sayings,
    sampling: Sampling,
    episodes: int,
    seed: int,
) -> Report:
    """Intervals of success for each kind of goal."""
    taught = draw_told(world, sayings, "train", episodes, seed)
    unseen = draw_told(world, sayings, "held_out", episodes, seed + 1)
    report: Report = {}
    for offset, (name, told) in enumerate({"true": taught, "held_out": unseen}.items()):
        outcomes = run_told(pipe, told, sampling, seed + offset)
        report[name] = _rate([o.success for o in outcomes])
        report[f"{name}_understood"] = _rate([o.understood for o in outcomes])
        report[f"{name}_goals"] = _by_goal(told, outcomes)
        report["milliseconds"] = float(np.median([o.milliseconds for o in outcomes]))
    if len(world.goals) > 1:
        report |= _with_other_words(pipe, world, sayings, sampling, taught, seed)
    empty = [Told(t.seed, t.goal, "") for t in taught]
    report["empty"] = _successes(run_told(pipe, empty, sampling, seed + 2, refuse=False))
    return report


def _with_other_words(
    pipe: PolicyPipeline,
    world: World,
    sayings: Sayings,
    sampling: Sampling,
    taught: Sequence[Told],
    seed: int,
) -> Report:
    rng = np.random.default_rng([seed, 8])
    others = []
    for told in taught:
        goals = _possible(world, told.seed) if world.swappable else world.goals
        goals = [goal for goal in goals if goal != told.goal]
        others.append(str(rng.choice(goals)) if goals else "")
    said = [_say(sayings, other, rng) if other else "" for other in others]
    room = [Told(t.seed, t.goal, words) for t, words in zip(taught, said, strict=True) if words]
    both = [
        Told(t.seed, t.goal, f"{t.words} and {words}")
        for t, words in zip(taught, said, strict=True)
        if words
    ]
    report: Report = {
        "other_words": _successes(run_told(pipe, room, sampling, seed + 3)),
        "contradictory": _successes(run_told(pipe, both, sampling, seed + 4, refuse=False)),
    }
    if world.swappable:
        swapped = [
            Told(t.seed, other, words, watched=t.goal)
            for t, other, words in zip(taught, others, said, strict=True)
            if words
        ]
        outcomes = run_told(pipe, swapped, sampling, seed + 5)
        report["swap"] = {
            "does_told": _successes(outcomes),
            "does_other": _rate([o.strayed and not o.success for o in outcomes]),
            "passes_other": _rate([o.strayed for o in outcomes]),
        }
    return report


def _say(sayings: Sayings, goal: str, rng: np.random.Generator) -> str:
    texts = sayings.of(goal, "train")
    return texts[rng.integers(len(texts))]


def _by_goal(told: Sequence[Told], outcomes: Sequence[Outcome]) -> Mapping[str, object]:
    found: dict[str, list[bool]] = {}
    for t, outcome in zip(told, outcomes, strict=True):
        found.setdefault(t.goal, []).append(outcome.success)
    return {goal: _rate(results) | {"episodes": len(results)} for goal, results in found.items()}


def _successes(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return _rate([outcome.success for outcome in outcomes])


def _rate(results: Sequence[bool]) -> dict[str, float]:
    return wilson(sum(results), len(results)).to_dict()
