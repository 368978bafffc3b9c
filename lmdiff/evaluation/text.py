"""How many prompts a text agent solves, in training, `lmdiff run` and `lmdiff eval` alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmdiff.evaluation.intervals import Interval, bootstrap_mean, wilson
from lmdiff.evaluation.sharing import over_ranks
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.prompts import Row
from lmdiff.text.rewards import RewardFunction, load_rewards, score
from lmdiff.text.tasks import columns_of
from lmdiff.training.seeds import EVALUATION, derived_seed


@dataclass(frozen=True)
class Answers:
    """What an agent wrote to N prompts."""

    texts: list[str]
    row_forwards: int
    """Model calls, counted by rows."""


@dataclass(frozen=True)
class Measured:
    """Figures over N prompts, which all ranks answered together."""

    rewards: dict[str, list[float | None]]
    """Each reward's values [N]; None where it does not apply."""
    forwards: float
    """Model calls a text."""


def measure(
    pipe: TextPipeline,
    rows: Sequence[Row],
    rewards: Sequence[str],
    seed: int,
    batch_size: int = 128,
    **settings: Any,
) -> Measured:
    """Answer prompts and score the answers; prompts are shared among ranks, which all call it.

    A prompt's answer is the same on any number of ranks, for its noise is its own.

    Args:
        pipe: the agent.
        rows: N prompts.
        rewards: names for `load_rewards`.
        seed: of the noise.
        batch_size: prompts that are sampled at once.
        settings: of the pipeline's call.

    Raises:
        UserError: a reward failed, on any rank.
    """
    functions = load_rewards(list(dict.fromkeys(rewards)))

    def run(mine: list[int]) -> list[list[float]]:
        part = [rows[i] for i in mine]
        answers = answer(pipe, part, seed, batch_size, numbers=mine, **settings)
        found = rewards_of(functions, part, answers.texts)
        return [
            [answers.row_forwards / len(mine), *(math.nan if v is None else v for v in values)]
            for values in zip(*found.values(), strict=True)
        ]

    table = over_ranks(len(rows), run)
    values = {
        name: [None if math.isnan(value) else value for value in table[:, column].tolist()]
        for column, name in enumerate(functions, 1)
    }
    return Measured(values, float(table[:, 0].mean()))


def answer(
    pipe: TextPipeline,
    rows: Sequence[Row],
    seed: int,
    batch_size: int = 128,
    numbers: Sequence[int] | None = None,
    **settings: Any,
) -> Answers:
    """Complete the prompts of rows. A row's noise is its own: batches change no text.

    Args:
        pipe: the agent.
        rows: N prompts.
        seed: of the noise.
        batch_size: prompts that are sampled at once.
        numbers: of the rows, for their noise; by default 0 to N - 1.
        settings: of the pipeline's call.
    """
    texts: list[str] = []
    forwards = 0
    numbers = range(len(rows)) if numbers is None else numbers
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        noise = [
            torch.Generator().manual_seed(derived_seed(seed, number, stream=EVALUATION))
            for number in numbers[first : first + batch_size]
        ]
        found = pipe([row["prompt"] for row in part], generator=noise, **settings)
        texts += found.text
        forwards += found.row_forwards
    return Answers(texts, forwards)


def rewards_of(
    rewards: dict[str, RewardFunction], rows: Sequence[Row], texts: Sequence[str]
) -> dict[str, list[float | None]]:
    """Each reward's values [N] for what was written to N prompts."""
    prompts = [row["prompt"] for row in rows]
    return score(rewards, prompts, texts, columns_of(rows)).by_function


def solved_share(
    solved: str, rows: Sequence[Row], texts: Sequence[str]
) -> tuple[list[bool], Interval]:
    """Which prompts are solved, and their share."""
    name, function = next(iter(load_rewards(solved).items()))
    return share_of(rewards_of({name: function}, rows, texts)[name])


def share_of(values: Sequence[float | None]) -> tuple[list[bool], Interval]:
    """Where a reward is 1, and how often. A text that cannot be judged is not solved."""
    flags = [value is not None and value >= 1 for value in values]
    return flags, wilson(sum(flags), len(flags))


def means_of(rewards: dict[str, list[float | None]]) -> dict[str, Interval]:
    """The mean of each reward, over the prompts that it applies to."""
    applying = {name: [v for v in values if v is not None] for name, values in rewards.items()}
    return {name: bootstrap_mean(values) for name, values in applying.items() if values}


def solving(
    make_pipe: Callable[[], TextPipeline], rows: Sequence[Row], solved: str, batch_size: int
) -> Callable[[Any, int], dict[str, float]]:
    """For the loop's `evaluate`: the share of some rows that is solved, at each step alike."""

    def evaluate(_: Any, step: int) -> dict[str, float]:
        (values,) = measure(make_pipe(), rows, [solved], step, batch_size).rewards.values()
        return {"solved": share_of(values)[1].mean}

    return evaluate
