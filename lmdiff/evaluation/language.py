"""Does the agent do what it is told? Success by words, and what happens when the words change.

An episode succeeds when the agent, once it says that it has arrived (or time is up), stands inside
the set of cells that counts; the start is always outside. A refused goal is a failure. Each report
has goals as taught (`true`), phrases never taught (`held_out`), the words of another episode
(`shuffled`: does it reach the goal that is *stated*?), no words (`empty`) and sentences that name
two places apart (`contradictory`). For the last two the episode's own goal counts, of which the
words tell nothing or half: the model is run without refusing, so that the words' weight shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.evaluation.intervals import Interval, wilson
from lmdiff.evaluation.rollout import AT_ONCE, Episode, Settings, environment, run_episodes
from lmdiff.evaluation.sharing import noise_seed, over_ranks
from lmdiff.goals.grammar import Phrase
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.tasks.pointmaze import Cell, PointMaze


@dataclass(frozen=True)
class Trial:
    """One episode to run: where it starts, what is said, and where it should end."""

    start: Cell
    goal: str
    cells: frozenset[Cell]
    """Where the agent should stand in the end."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    success: bool
    understood: bool
    steps: int


def run_trials(
    pipe: GoalPipeline,
    task: PointMaze,
    trials: Sequence[Trial],
    settings: Settings,
    seed: int,
    *,
    refuse: bool = True,
) -> list[Outcome]:
    """Run trials, shared among ranks; goals that are refused fail without a step.

    The noise is the ranks' own: as many trials on more ranks give other outcomes, of equal chances.
    """

    def run(mine: list[int]) -> list[list[float]]:
        generator = torch.Generator(pipe.device).manual_seed(noise_seed(seed))
        results = {index: [0.0, 0.0, 0.0] for index in mine}
        runnable = [i for i in mine if not refuse or _understands(pipe, trials[i].goal)]
        for first in range(0, len(runnable), AT_ONCE):
            group = runnable[first : first + AT_ONCE]
            episodes = [
                start_episode(task, trials[index].start, trials[index].goal, [seed, index], slot)
                for slot, index in enumerate(group)
            ]
            run_episodes(pipe, episodes, settings, generator)
            for index, episode in zip(group, episodes, strict=True):
                inside = task.cell_of(episode.observation) in trials[index].cells
                results[index] = [inside, True, episode.steps]
        return [results[index] for index in mine]

    return [
        Outcome(success=bool(inside), understood=bool(known), steps=int(steps))
        for inside, known, steps in over_ranks(len(trials), run)
    ]


def start_episode(
    task: PointMaze, start: Cell, goal: str, seed: Sequence[int], slot: int = 0
) -> Episode:
    """An episode that starts in a cell (with the benchmark's noise) and is told a goal."""
    env = environment(task, slot)
    np.random.seed(list(seed))  # OGBench draws its noise from the global generator
    info = {"init_ij": start, "goal_ij": start}
    observation, _ = env.reset(seed=int(seed[-1]), options={"task_info": info})
    return Episode(env=env, observation=observation, goal=goal, max_steps=task.max_episode_steps)


def _understands(pipe: GoalPipeline, goal: str) -> bool:
    try:
        pipe.understand(goal)
    except GoalNotUnderstood:
        return False
    return True


def draw_trials(task: PointMaze, phrases: Sequence[Phrase], count: int, seed: int) -> list[Trial]:
    """`count` trials over the phrases, in turn; starts are drawn outside each phrase's cells."""
    rng = np.random.default_rng([seed, 7])
    trials = []
    for index in range(count):
        phrase = phrases[index % len(phrases)]
        trials.append(Trial(_start_outside(task, phrase.cells, rng), phrase.text, phrase.cells))
    return trials


def _start_outside(task: PointMaze, cells: frozenset[Cell], rng: np.random.Generator) -> Cell:
    outside = [cell for cell in task.free_cells if cell not in cells]
    if not outside:
        raise UserError("A phrase denotes the whole maze: there is no start outside of it.")
    return outside[rng.integers(len(outside))]


def language_report(
    pipe: GoalPipeline,
    task: PointMaze,
    settings: Settings,
    taught: Sequence[Phrase],
    held_out: Sequence[Phrase],
    episodes: int,
    seed: int,
) -> dict[str, object]:
    """Success intervals for each kind of goal, and held-out success by why it is held out."""
    true = draw_trials(task, taught, episodes, seed)
    unseen = draw_trials(task, held_out, episodes, seed + 1)
    shuffled = _shuffle(true, seed)
    empty = [Trial(trial.start, "", trial.cells) for trial in true]
    contradictory = [
        Trial(trial.start, f"{trial.goal} and {other.goal}", trial.cells)
        for trial, other in zip(true, shuffled, strict=True)
    ]
    report: dict[str, object] = {}
    for offset, (name, trials) in enumerate({"true": true, "held_out": unseen}.items()):
        outcomes = run_trials(pipe, task, trials, settings, seed + offset)
        report[name] = _rate([o.success for o in outcomes])
        report[f"{name}_understood"] = _rate([o.understood for o in outcomes])
        if name == "held_out":
            report["held_out_by_reason"] = _by_reason(held_out, outcomes)
    outcomes = run_trials(pipe, task, shuffled, settings, seed + 2)
    report["shuffled"] = _rate([o.success for o in outcomes])
    for offset, (name, trials) in enumerate(
        {"empty": empty, "contradictory": contradictory}.items()
    ):
        outcomes = run_trials(pipe, task, trials, settings, seed + 3 + offset, refuse=False)
        report[name] = _rate([o.success for o in outcomes])
        report[f"{name}_understood"] = _rate([_understands(pipe, trial.goal) for trial in trials])
    return report


def _shuffle(trials: Sequence[Trial], seed: int) -> list[Trial]:
    """Every episode is told the words of another, whose cells are disjoint from its own."""
    rng = np.random.default_rng([seed, 8])
    shuffled = []
    for trial in trials:
        others = [
            other
            for other in trials
            if not other.cells & trial.cells and trial.start not in other.cells
        ]
        if not others:
            raise UserError("The phrases are too few, or too wide, to be shuffled among episodes.")
        other = others[rng.integers(len(others))]
        shuffled.append(Trial(trial.start, other.goal, other.cells))
    return shuffled


def _by_reason(phrases: Sequence[Phrase], outcomes: Sequence[Outcome]) -> dict[str, object]:
    found: dict[str, list[bool]] = {}
    for index, outcome in enumerate(outcomes):
        found.setdefault(phrases[index % len(phrases)].kind, []).append(outcome.success)
    return {
        reason: _rate(results) | {"episodes": len(results)} for reason, results in found.items()
    }


def _rate(results: Sequence[bool]) -> dict[str, float]:
    interval: Interval = wilson(sum(results), len(results))
    return interval.to_dict()


def read_phrases(path: Path, task: PointMaze) -> list[Phrase]:
    """Phrases of one's own: a line each, `phrase<TAB>row,column;row,column;...`.

    Raises:
        UserError: names the file and line of whatever is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # or with the mark of editors
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The phrases in {path} cannot be read: {error}") from error
    phrases = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        text, tab, denoted = line.partition("\t")
        if not tab or not text.strip():
            raise UserError(f"{where}: a phrase, a tab, and cells such as 3,5;4,5 are expected.")
        cells = frozenset(_read_cell(part, where, task) for part in denoted.strip(" ;").split(";"))
        phrases.append(Phrase(text.strip(), ("file", number), cells, "held_out", "template"))
    if not phrases:
        raise UserError(f"{path} has no phrases.")
    return phrases


def _read_cell(text: str, where: str, task: PointMaze) -> Cell:
    try:
        row, column = (int(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"{where}: {text!r} is not a cell; write row,column as in 3,5.") from None
    if (row, column) not in task.free_cells:
        raise UserError(
            f"{where}: row {row}, column {column} is a wall, or outside of {task.name}."
        )
    return row, column
