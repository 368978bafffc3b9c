"""The model card of a saved text agent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmdiff.text.config import TextAgentConfig
from lmdiff.training.manifest import machine, package_versions

_CARD = """---
library_name: diffusers
license: {license}
tags: [lmdiff, masked-diffusion, text-generation]
---

# {name}

{description}

A masked-diffusion language model for the task `{task}`: {model}. Load it with

    from lmdiff.pipelines.text_pipeline import TextPipeline
    pipe = TextPipeline.from_pretrained("{name}")

## Training

Algorithm `{algorithm}`, {steps} steps of {batch} texts, learning rate {rate:g}, seed {seed}, data
seed {data_seed}; on {machine}; {versions}.

## Results

`lmdiff eval` measures the share of held-out prompts that it solves.

## Limits

What it writes may be wrong: check it. It was taught one task.
"""


def write_text_card(folder: Path, config: TextAgentConfig, metrics: Mapping[str, Any]) -> None:
    """Write `README.md` into a saved pipeline's folder.

    Args:
        folder: of the pipeline.
        config: the agent's.
        metrics: the last ones of its training.
    """
    model, where = config.model, machine()
    fresh = f"a BERT of {model.layers} layers, width {model.width}, trained from fresh weights"
    adapted = "all weights trained" if model.adaptation == "full" else f"LoRA {model.lora_rank}"
    card = _CARD.format(
        # Fine-tuned weights stay under the license of those that they came from.
        license="apache-2.0" if model.source == "scratch" else "other",
        name=config.name,
        description=config.description,
        task=config.task.name,
        model=fresh if model.source == "scratch" else f"`{model.source}`, {adapted}",
        algorithm=config.algorithm,
        steps=metrics.get("step", config.training.max_steps),
        batch=config.training.batch_size,
        rate=config.training.learning_rate,
        seed=config.training.seed,
        data_seed=config.task.data_seed,
        machine=f"{where['cpu']}, {where['cores']} cores"
        + (f", {where['gpu']}" if where["gpu"] else ""),
        versions=", ".join(f"{name} {number}" for name, number in package_versions().items()),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
