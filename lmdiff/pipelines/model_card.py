"""The model card of a saved agent: what it was taught, how, and how well it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmdiff.config import AgentConfig
from lmdiff.goals.grammar import load_grammar
from lmdiff.training.manifest import machine, package_versions

_CARD = """---
library_name: diffusers
license: apache-2.0
tags: [lmdiff, diffusion-planner, language-conditioned]
---

# {name}

{description}

A language-conditioned diffusion planner for `{task}` ({dataset} data, {data_steps:,} steps,
generated locally). Load it with

    from lmdiff.pipelines.goal_pipeline import GoalPipeline
    pipe = GoalPipeline.from_pretrained("{name}")

## Goals

Phrases of the grammar `maze` (sha256 `{prompts}`): cells, rows, columns, corners, edges, halves,
quadrants, dead ends and the centre, counted by the maze array's indices (row 0, a wall, on top).
Other goals are refused. Language model: `{language_model}` ({adaptation}).

## Training

{steps} steps of {batch} windows, seed {seed}, data seed {data_seed}; on {machine}; {versions}.

## Results

{results}

## Limits

It knows one maze and its words. Success rates are of simulated episodes. Ambiguous or contradictory
sentences are followed in part or refused.
"""


def write_card(
    folder: Path,
    config: AgentConfig,
    metrics: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
) -> None:
    """Write `README.md` into a saved pipeline's folder.

    Args:
        folder: of the pipeline.
        config: the agent's.
        metrics: the last ones of its training.
        report: the JSON object of `lmdiff eval`, once there is one.
    """
    where = machine()
    versions = package_versions()
    card = _CARD.format(
        name=config.name,
        description=config.description,
        task=config.task.name,
        dataset=config.task.dataset,
        data_steps=config.task.steps,
        prompts=load_grammar("maze").digest,
        language_model=config.goal.language_model,
        adaptation=config.goal.adaptation,
        steps=metrics.get("step", config.training.max_steps),
        batch=config.training.batch_size,
        seed=config.training.seed,
        data_seed=config.task.data_seed,
        machine=f"{where['cpu']}, {where['cores']} cores"
        + (f", {where['gpu']}" if where["gpu"] else ""),
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        results=_results(report),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _results(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "Not evaluated yet: `lmdiff eval`."
    lines = ["| goals | success, % (95% interval) |", "|---|---|"]
    for name in ("true", "held_out", "shuffled", "empty", "contradictory"):
        lines.append(f"| {name} | {_percent(report['language'][name])} |")
    lines.append(
        f"| OGBench protocol (goal as a state) | {_percent(report['ogbench']['success'])} |"
    )
    lines.append("")
    lines.append(f"Episodes: {report['episodes']} for each kind of goal; seeds {report['seeds']}.")
    return "\n".join(lines)


def _percent(interval: Mapping[str, float]) -> str:
    mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} ({low:.1f}-{high:.1f})"
