"""Finding and loading a trained agent, and the settings that it is sampled with."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open

from lmdiff.errors import UserError
from lmdiff.evaluation.rollout import Settings
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.pipelines.policy_pipeline import PolicyPipeline
from lmdiff.tasks.pointmaze import PointMaze

P = TypeVar("P", GoalPipeline, PolicyPipeline)


def load_pipeline(folder: Path) -> GoalPipeline:
    """The planner saved in a folder, on this machine's accelerator if it has one.

    Raises:
        UserError: a file is missing or damaged.
    """
    parts = "network", "normalizer", "known_goals", "recorded_hops"
    return _load(GoalPipeline, folder, parts)


def load_policy(folder: Path) -> PolicyPipeline:
    """The same for a policy.

    Raises:
        UserError: a file is missing or damaged.
    """
    return _load(PolicyPipeline, folder, ("network", "normalizer", "known_goals", "critic"))


def _load(kind: type[P], folder: Path, parts: Sequence[str]) -> P:
    import torch

    # diffusers lists the scheduler's settings that only other schedulers read, and progress bars.
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.ERROR)
    diffusers_logging.disable_progress_bar()
    try:
        pipe = kind.from_pretrained(folder, use_safetensors=True)
        _check_complete(pipe, folder, parts)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"The agent in {folder} cannot be loaded ({error}). Train it again: lmdiff train AGENT "
            "--output OTHER_DIR"
        ) from error
    finally:
        diffusers_logging.set_verbosity(level)
        diffusers_logging.enable_progress_bar()
    if torch.accelerator.is_available():
        pipe.to(torch.accelerator.current_accelerator())
    return pipe


def _check_complete(pipe: DiffusionPipeline, folder: Path, parts: Sequence[str]) -> None:
    """Diffusers gives tensors that a file lacks random values, with no more than a warning.

    Raises:
        ValueError: names what is missing.
    """
    for name in parts:
        module = pipe.components[name]
        if module is None:
            continue
        with safe_open(folder / name / "diffusion_pytorch_model.safetensors", "pt") as saved:
            missing = module.state_dict().keys() - set(saved.keys())
        if missing:
            raise ValueError(f"{name} lacks the tensors {', '.join(sorted(missing)[:3])}")


def task_of(pipe: GoalPipeline) -> PointMaze:
    """The task that a pipeline was trained for."""
    return PointMaze(pipe.config["task"])


def settings_of(
    pipe: GoalPipeline,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    role: str = "planner",
    projection_steps: int | None = None,
) -> Settings:
    """The agent's own settings, with what is not None in their place."""
    own = pipe.config["evaluation"] or {}
    settings = Settings(
        num_inference_steps=own.get("num_inference_steps", 5),
        guidance_scale=own.get("guidance_scale", 1.0),
        projection_steps=own.get("projection_steps", 8),
        role=role,
    )
    if num_inference_steps is not None:
        settings = replace(settings, num_inference_steps=num_inference_steps)
    if guidance_scale is not None:
        settings = replace(settings, guidance_scale=guidance_scale)
    if projection_steps is not None:
        settings = replace(settings, projection_steps=projection_steps)
    return settings
