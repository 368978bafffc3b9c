"""What `train` refuses before it starts, with the reason and the way out."""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from lmdiff.config import TrainingConfig
from lmdiff.errors import EnvironmentFault, UserError
from lmdiff.ranges import check_ranges
from lmdiff.training.checkpoints import list_checkpoints
from lmdiff.training.launch import check_world_size, launch_state
from lmdiff.training.manifest import check_same_run, describe_run, read_run
from lmdiff.training.trackers import check_tracker


def check_config(config: TrainingConfig, round_steps: int = 1) -> None:
    """Refuse settings that cannot train, a tracker or a compiler that is not there."""
    check_ranges(config, "training")
    if config.max_steps % round_steps:
        whole = max(config.max_steps // round_steps, 1) * round_steps
        raise UserError(
            f"max_steps = {config.max_steps} is not a whole number of rounds of {round_steps} "
            f"steps: choose {whole}."
        )
    check_tracker(config.tracker)
    if config.compile and not any(
        map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))
    ):
        raise UserError(
            "training.compile needs a C++ compiler, and none was found. Install one, or train "
            "with --training.no-compile."
        )


def check_sharding(config: TrainingConfig, module: nn.Module, evaluates: bool) -> None:
    """Refuse to shard what calls parts of its module, or calls it by turns: ranks would wait."""
    if not config.shard:
        return
    way_out = "Leave training.shard out; a model that is too large may train adapters instead "
    way_out += "(--model.adaptation lora --model.dtype bfloat16)."
    if not getattr(module, "shardable", False):
        raise UserError(
            "training.shard works where a step is one forward pass of the whole module: supervised "
            f"fine-tuning and pre-training of text. {way_out}"
        )
    if evaluates:
        raise UserError(
            "training.shard leaves no process a whole model to evaluate on the way: set "
            "--training.evaluate-every 0, and evaluate the trained agent (`lmdiff eval`)."
        )
    if config.compile:
        raise UserError(f"training.shard and training.compile do not go together. {way_out}")


def check_accelerator(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Refuse a world size or a precision that is not what was asked for."""
    check_world_size(accelerator)
    if accelerator.mixed_precision not in ("no", config.mixed_precision):
        raise UserError(
            f"Accelerate was started with mixed precision {accelerator.mixed_precision!r}, and "
            f"training.mixed_precision is {config.mixed_precision!r}: set one of them (for example "
            "`accelerate launch --mixed_precision no`)."
        )


def open_run(
    config: TrainingConfig,
    run_dir: Path,
    extras: Mapping[str, Any],
    accelerator: Accelerator,
    resume: bool,
) -> dict[str, Any]:
    """What run.json shall hold; refuses a directory that does not fit. Writes nothing."""
    new = describe_run(config, extras, launch_state(accelerator))
    if not resume:
        if list_checkpoints(run_dir):
            raise UserError(
                f"{run_dir} holds a run already. Go on with it (`lmdiff train --resume {run_dir}`) "
                "or choose another --output."
            )
        return new
    old = read_run(run_dir)
    if old is None:
        raise UserError(
            f"There is no run in {run_dir}: run.json is missing. Train without --resume."
        )
    check_same_run(run_dir, old, new)
    resumed = {key: new[key] for key in ("started", "versions", "git_commit", "machine", "launch")}
    return {**new, "started": old["started"], "resumed": [*old.get("resumed", []), resumed]}


def tell_skipped(config: TrainingConfig, step: int, fault: str, in_a_row: int) -> None:
    """Warn of a step that changed nothing (the first of a row), or stop if there are too many.

    Raises:
        UserError: more than `max_skipped` in a row.
    """
    if in_a_row > config.max_skipped:
        raise UserError(
            f"Step {step}: {fault} is not finite, {in_a_row} steps in a row. The weights are as "
            f"before; more than {config.max_skipped} are not skipped (--training.max-skipped). "
            f"Try a lower --training.learning-rate (now {config.learning_rate:g}), a longer "
            "--training.warmup-steps, --training.mixed-precision no; look for NaN in the data."
        )
    if in_a_row == 1:
        warnings.warn(f"Step {step} is skipped: {fault} is not finite.", stacklevel=2)


@contextmanager
def telling_what_is_kept(run_dir: Path) -> Iterator[None]:
    """A training, in which an environment may fail: own experience, or an evaluation.

    Raises:
        EnvironmentFault: names the newest checkpoint, and how to go on from it.
    """
    try:
        yield
    except EnvironmentFault as fault:
        steps = [step for step, _ in list_checkpoints(run_dir)]
        kept = f"The checkpoint of step {steps[-1]} is kept." if steps else "No checkpoint was due."
        raise EnvironmentFault(fault.what, f"{kept} Mend it. {go_on(run_dir)}") from fault


def go_on(run_dir: Path) -> str:
    """How to resume, as a sentence."""
    return f"Go on with: lmdiff train --resume {run_dir}"
