"""The model card of a saved agent: what it was taught, how, and how well it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmdiff.config import AgentConfig
from lmdiff.goals.grammar import load_grammar
from lmdiff.policy_config import PolicyAgentConfig
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
        machine=_where(),
        versions=_versions(),
        results=_results(report),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


_POLICY_CARD = """---
library_name: diffusers
license: apache-2.0
tags: [lmdiff, diffusion-policy, language-conditioned]
---

# {name}

{description}

A language-conditioned policy for `{world}`, trained by `{algorithm}` on {episodes:,} recorded
episodes (`{dataset}`, generated locally). Load it with

    from lmdiff.pipelines.policy_pipeline import PolicyPipeline
    pipe = PolicyPipeline.from_pretrained("{name}")

## Goals

Sentences of `prompts/{family}.toml` (sha256 `{prompts}`). Others are refused where the world has
more than one goal. Language model: `{language_model}` ({adaptation}).

## Training

{steps} steps of {batch} transitions, seed {seed}, data seed {data_seed}; on {machine}; {versions}.

## Limits

It knows one simulated world and its words. Measure it: `lmdiff eval`.
"""


def write_policy_card(
    folder: Path, config: PolicyAgentConfig, family: str, prompts: str, metrics: Mapping[str, Any]
) -> None:
    """Write `README.md` into a saved policy's folder; `prompts` is the sha256 of its sentences."""
    card = _POLICY_CARD.format(
        name=config.name,
        description=config.description,
        world=config.world.name,
        family=family,
        algorithm=config.algorithm.name,
        episodes=config.world.episodes,
        dataset=config.world.dataset,
        prompts=prompts,
        language_model=config.goal.language_model,
        adaptation=config.goal.adaptation,
        steps=metrics.get("step", config.training.max_steps),
        batch=config.training.batch_size,
        seed=config.training.seed,
        data_seed=config.world.data_seed,
        machine=_where(),
        versions=_versions(),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _where() -> str:
    where = machine()
    gpu = f", {where['gpu']}" if where["gpu"] else ""
    return f"{where['cpu']}, {where['cores']} cores{gpu}"


def _versions() -> str:
    return ", ".join(f"{name} {number}" for name, number in package_versions().items())


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
