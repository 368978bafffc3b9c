"""Optional trackers, through Accelerate. metrics.jsonl is written in any case."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import LoggerType

from lmdiff.errors import UserError


def start_tracker(
    accelerator: Accelerator, name: str, run_dir: Path, config: Mapping[str, Any]
) -> None:
    """Let `accelerator.log` write to a tracker; 'none' does nothing.

    `config` is shown beside the curves: flat scalars, for TensorBoard takes nothing else.

    Raises:
        UserError: the tracker's package is not installed.
    """
    if name == "none":
        return
    # Accelerate drops a tracker that it cannot import without a word.
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"The tracker {name!r} is not installed. Install it (`pip install {name}`), or go "
            "without: --training.tracker none. metrics.jsonl is written in any case."
        )
    accelerator.log_with = [*accelerator.log_with, LoggerType(name)]
    accelerator.project_configuration.set_directories(str(run_dir))
    named = {"name": run_dir.name} if name in ("trackio", "wandb") else {}
    accelerator.init_trackers("lmdiff", dict(config), {name: named})
