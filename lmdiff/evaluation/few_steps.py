"""Quality against denoising steps: success and time of one action, as rows and as a plot."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmdiff.errors import UserError
from lmdiff.evaluation.intervals import wilson
from lmdiff.evaluation.policy_language import draw_told, run_told
from lmdiff.evaluation.policy_rollout import Sampling
from lmdiff.evaluation.printing import print_rate
from lmdiff.goals.sayings import Sayings
from lmdiff.pipelines.policy_pipeline import PolicyPipeline
from lmdiff.tasks.world import World

_CALLS = 50


def numbers_of_steps(text: str) -> list[int]:
    """The numbers in `1,2,4,10`.

    Raises:
        UserError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--steps {text}: give numbers of denoising steps, as in 1,2,4,10.")
    return [int(part) for part in parts]


def few_steps(
    pipe: PolicyPipeline,
    world: World,
    sayings: Sayings,
    settings: Sequence[tuple[int, Sampling]],
    episodes: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each number of steps: success by taught words from the same starts, and time."""
    told = draw_told(world, sayings, "train", episodes, seed)
    rows = []
    for number, sampling in settings:
        outcomes = run_told(pipe, told, sampling, seed)
        success = wilson(sum(o.success for o in outcomes), len(outcomes)).to_dict()
        milliseconds = _alone(pipe, told[0].words, sampling)
        rows.append({"steps": number, "success": success, "milliseconds": milliseconds})
        print_rate(f"{number} steps, {milliseconds:.2f} ms", success)
    return rows


def _alone(pipe: PolicyPipeline, words: str, sampling: Sampling) -> float:
    """Median milliseconds of one call for one situation, after one to warm up."""
    goals = pipe.encode_goal([words])
    size = pipe.config["history"], len(pipe.normalizer.offset)
    spent = []
    for _ in range(_CALLS + 1):
        began = time.perf_counter()
        pipe(
            goals,
            observation=np.zeros(size, np.float32),
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
        )
        spent.append(1000 * (time.perf_counter() - began))
    return round(float(np.median(spent[1:])), 3)


def plot_few_steps(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> Path:
    """Success with its interval against the time of one action, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    times = [row["milliseconds"] for row in rows]
    rates = [row["success"] for row in rows]
    means = [100 * rate["mean"] for rate in rates]
    below = [100 * (rate["mean"] - rate["low"]) for rate in rates]
    above = [100 * (rate["high"] - rate["mean"]) for rate in rates]
    axes.errorbar(times, means, [below, above], fmt="o-", capsize=3)
    for when, mean, row in zip(times, means, rows, strict=True):
        label = f"{row['steps']}"
        axes.annotate(label, (when, mean), textcoords="offset points", xytext=(5, -12))
    axes.set(xlabel="one action, ms (labels: denoising steps)", ylabel="success, %", title=title)
    axes.set_ylim(0, 105)
    figure.savefig(path)
    return path
