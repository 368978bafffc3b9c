"""How many prompts a text agent solves, in training, `lmdiff run` and `lmdiff eval` alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmdiff.evaluation.intervals import Interval, bootstrap_mean, wilson
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


def answer(
    pipe: TextPipeline, rows: Sequence[Row], seed: int, batch_size: int = 128, **settings: Any
) -> Answers:
    """Complete the prompts of rows. A row's noise is its own: batches change no text.

    Args:
        pipe: the agent.
        rows: N prompts.
        seed: of the noise.
        batch_size: prompts that are sampled at once.
        settings: of the pipeline's call.
    """
    texts: list[str] = []
    forwards = 0
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        noise = [
            torch.Generator().manual_seed(derived_seed(seed, first + i, stream=EVALUATION))
            for i in range(len(part))
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
    """Which prompts are solved, and their share. A text that cannot be judged is not solved."""
    name, function = next(iter(load_rewards(solved).items()))
    values = rewards_of({name: function}, rows, texts)[name]
    flags = [value is not None and value >= 1 for value in values]
    return flags, wilson(sum(flags), len(flags))


def mean_rewards(
    names: Sequence[str], rows: Sequence[Row], texts: Sequence[str]
) -> dict[str, Interval]:
    """The mean of each reward, over the prompts that it applies to."""
    found = rewards_of(load_rewards(list(names)), rows, texts) if names else {}
    applying = {name: [v for v in values if v is not None] for name, values in found.items()}
    return {name: bootstrap_mean(values) for name, values in applying.items() if values}


def solving(
    make_pipe: Callable[[], TextPipeline], rows: Sequence[Row], solved: str, batch_size: int
) -> Callable[[Any, int], dict[str, float]]:
    """For the loop's `evaluate`: the share of some rows that is solved, at each step alike."""

    def evaluate(_: Any, step: int) -> dict[str, float]:
        texts = answer(make_pipe(), rows, step, batch_size).texts
        return {"solved": solved_share(solved, rows, texts)[1].mean}

    return evaluate
