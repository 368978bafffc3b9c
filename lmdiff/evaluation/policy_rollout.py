"""Roll-outs of policies: many episodes side by side, so that actions are computed in batches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lmdiff.denoisers.situation import Situation
from lmdiff.pipelines.policy_pipeline import PolicyPipeline
from lmdiff.tasks.world import World

AT_ONCE = 20  # episodes side by side


@dataclass(frozen=True)
class Sampling:
    """How to act."""

    num_inference_steps: int = 10
    guidance_scale: float = 1.0
    candidates: int | None = None
    """Default: the agent's."""


@dataclass
class PolicyEpisode:
    """One episode to run; what happened is written into it."""

    world: World
    seed: int
    """Of the start."""
    goal: str
    """Key of what counts; the world ends the episode when it is achieved."""
    words: str
    """What is said."""
    watched: str = ""
    """Key of another goal, of which is noted whether it was achieved on the way."""

    success: bool = False
    strayed: bool = False
    """`watched` was achieved, and before `goal`."""
    steps: int = 0
    observations: list[np.ndarray] = field(default_factory=list)
    """What was seen, the start included."""
    actions: list[np.ndarray] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    """Time of each call of the policy; those of a batch share theirs."""


def run_policy(
    pipe: PolicyPipeline,
    episodes: Sequence[PolicyEpisode],
    sampling: Sampling,
    generator: torch.Generator,
    on_step: Callable[[PolicyEpisode], None] | None = None,
) -> None:
    """Run episodes, each in a world of its own, to their ends; results are written into them."""
    for episode in episodes:
        options = {"goal": episode.goal}
        observation, _ = episode.world.reset(seed=episode.seed, options=options)
        episode.observations = [observation]
    goals = pipe.encode_goal([episode.words for episode in episodes])
    active = list(range(len(episodes)))
    while active:
        chunks = _ask(
            pipe, [episodes[i] for i in active], _rows(goals, active), sampling, generator
        )
        active = [
            i
            for i, chunk in zip(active, chunks, strict=True)
            if not _execute(episodes[i], chunk, on_step)
        ]


def _rows(goals: Situation, active: list[int]) -> Situation:
    return goals._replace(goal=goals.goal[active])


def _ask(
    pipe: PolicyPipeline,
    episodes: Sequence[PolicyEpisode],
    goals: Situation,
    sampling: Sampling,
    generator: torch.Generator,
) -> np.ndarray:
    history = pipe.config["history"]
    began = time.perf_counter()
    seen = np.stack([recent(episode.observations, history) for episode in episodes])
    chunks = pipe(
        goals,
        observation=seen,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        candidates=sampling.candidates,
        generator=generator,
    ).actions
    milliseconds = 1000 * (time.perf_counter() - began)
    for episode in episodes:
        episode.milliseconds.append(milliseconds)
    return chunks[:, : pipe.config["execute"]]


def recent(observations: list[np.ndarray], history: int) -> np.ndarray:
    """[history, observation]; before the start the first one repeats, as in training."""
    known = observations[-history:]
    return np.stack([known[0]] * (history - len(known)) + known)


def _execute(
    episode: PolicyEpisode, chunk: np.ndarray, on_step: Callable[[PolicyEpisode], None] | None
) -> bool:
    """Do actions [n, action]; returns whether the episode has ended."""
    world = episode.world
    for action in chunk:
        observation, _, achieved, late, _ = world.step(action)
        episode.observations.append(observation)
        episode.actions.append(action)
        episode.steps += 1
        if on_step is not None:
            on_step(episode)
        if achieved:
            episode.success = True
            return True
        if episode.watched and world.guard.call(lambda: world.achieved(episode.watched)):
            episode.strayed = True
        if late:
            return True
    return False
