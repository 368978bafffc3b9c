"""Processes: the Accelerator of a training, and the launcher that starts several of them.

Accelerate sees GPUs by itself; on a CPU it needs `cpu=True` to make gloo ranks of the processes
that `accelerate launch --multi_gpu` or torchrun started. Without it, each would train alone, as
the main process, into the same directory (accelerate#2741).
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from lmdiff.errors import UserError

SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def make_accelerator() -> Accelerator:
    """The Accelerator of this process; joins the others that were started with it.

    Raises:
        UserError: processes were started that do not see each other.
    """
    check_rank_environment(os.environ)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    check_world_size(accelerator)
    return accelerator


def check_rank_environment(environment: Any) -> None:
    """Refuse what would otherwise train as fewer processes than asked for, or wait for ever.

    Raises:
        UserError: names the command that works.
    """
    started = "ACCELERATE_MIXED_PRECISION" in environment  # `accelerate launch` always sets it
    if started and "MASTER_PORT" in environment and "WORLD_SIZE" not in environment:
        raise UserError(
            "Accelerate started one process where several were asked for: `accelerate launch "
            "--cpu --num_processes N` ignores N (accelerate#2741). " + _way_out("N")
        )
    for name in SHARDING:
        if str(environment.get(f"ACCELERATE_USE_{name}", "")).lower() in ("true", "1"):
            raise UserError(_no_sharding(name))
    size, rank = (environment.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    if size and not (size.isdecimal() and rank.isdecimal() and int(rank) < int(size)):
        raise UserError(
            f"WORLD_SIZE is {size!r} and RANK is {rank!r}, which no launcher sets. Unset both to "
            "train in one process. " + _way_out("N")
        )


def check_world_size(accelerator: Accelerator) -> None:
    """Refuse to train where Accelerate made another number of processes than was started.

    Raises:
        UserError: names the command that works; or weights would be sharded.
    """
    if accelerator.distributed_type.value in SHARDING:
        raise UserError(_no_sharding(accelerator.distributed_type.value))
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != expected:
        raise UserError(
            f"{expected} processes were started, and Accelerate sees {accelerator.num_processes}: "
            "each would train alone, into the same directory (accelerate#2741). "
            + _way_out(expected)
        )


def launch_state(accelerator: Accelerator) -> dict[str, Any]:
    """What Accelerate made of flags, environment and config files, for run.json."""
    state = accelerator.state
    return {
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "backend": state.backend,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "gradient_accumulation": accelerator.gradient_accumulation_steps,
    }


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `lmdiff WORDS` in `processes` ranks by Accelerate's launcher; returns the exit code.

    On a machine without GPUs the ranks are CPU processes that share its threads.

    Raises:
        UserError: fewer than one process, or this is a launched process already.
    """
    if processes < 1:
        raise UserError(f"--processes {processes}: at least 1 is needed.")
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "This process was started by a launcher already: leave --processes out, its "
            "--num_processes decides."
        )
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    cpu = not torch.accelerator.is_available()
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        share = max(1, (os.cpu_count() or 1) // processes)
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
    # All that `accelerate launch` would ask for or warn about is said; 0: any free port.
    flags = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    arguments = launch_command_parser().parse_args([*flags, "--module", "lmdiff.cli", *words])
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        # The ranks have said what is wrong; the launcher's own report would bury it.
        return max(1, *(failure.exitcode for failure in error.failures.values()))
    except SignalException as error:
        # The ranks got it too: they have saved a checkpoint, and said how to go on.
        return 128 + int(error.sigval)
    return 0


def _no_sharding(name: str) -> str:
    return (
        f"Accelerate was asked for {name}. lmdiff shards weights itself, where it can: leave the "
        "flag out (`accelerate config` may have set it: "
        "`rm ~/.cache/huggingface/accelerate/default_config.yaml`) and, for a text model that does "
        "not fit one device, set --training.shard, or train adapters: --model.adaptation lora "
        "--model.dtype bfloat16."
    )


def _way_out(processes: object) -> str:
    return (
        f"Start them by `lmdiff train AGENT --processes {processes}`, or without a GPU by "
        f"`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {processes} "
        "scripts/train.py AGENT`."
    )
