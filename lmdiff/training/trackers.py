"""Optional trackers, through Accelerate. metrics.jsonl is written in any case."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import LoggerType

from lmdiff.errors import UserError


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed: Accelerate drops it without a word."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(
            f"The tracker {name!r} is not installed. Install it (`pip install {name}`), or go "
            "without: --training.tracker none. metrics.jsonl is written in any case."
        )


@contextmanager
def tracking(
    accelerator: Accelerator, name: str, run_dir: Path, config: Mapping[str, Any]
) -> Iterator[None]:
    """While entered, `accelerator.log` writes to a tracker; 'none' does nothing.

    `config` is shown beside the curves: flat scalars, for TensorBoard takes nothing else.
    """
    if name == "none":
        yield
        return
    accelerator.log_with = [LoggerType(name)]  # type: ignore[assignment]
    accelerator.project_configuration.set_directories(str(run_dir))
    named = {"name": run_dir.name} if name in ("trackio", "wandb") else {}
    accelerator.init_trackers("lmdiff", dict(config), {name: named})
    try:
        yield
    finally:
        # Not `end_training`: it also destroys the process group, which the caller may still need.
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers, accelerator.log_with = [], []
