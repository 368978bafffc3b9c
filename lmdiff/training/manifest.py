"""run.json: what a run was, so that it can be told, repeated and resumed."""

import json
import os
import platform
import subprocess
import warnings
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lmdiff.config import TrainingConfig, to_dict
from lmdiff.errors import UserError
from lmdiff.training.files import replace_json

# These change what a run writes and how long it goes on, not what it computes at a step.
MAY_CHANGE = frozenset(
    {
        "max_steps",
        "log_every",
        "checkpoint_every",
        "evaluate_every",
        "keep_checkpoints",
        "tracker",
        "max_skipped",
        "batch_size",  # with a warning: see `warn_about_changes`
    }
)
RUN_KEYS = {"config", "world_size", "gradient_accumulation", "versions", "machine", "started"}
PACKAGES = ("lmdiff", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors")


def describe_run(
    config: TrainingConfig, extras: Mapping[str, Any], launch: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of run.json; `launch` is what `launch_state` tells.

    Raises:
        UserError: `extras` holds what JSON cannot.
    """
    description = {
        "config": to_dict(config),
        "manifest": dict(extras),
        "seed": config.seed,
        "world_size": launch["processes"],
        "gradient_accumulation": launch["gradient_accumulation"],
        "launch": dict(launch),
        "versions": package_versions(),
        "git_commit": git_commit(),
        "machine": machine(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        # As it will be read back (tuples become lists), so that old and new compare equal.
        return json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"The run's manifest must be plain JSON: {error}.") from error


def read_run(run_dir: Path) -> dict[str, Any] | None:
    """The content of run.json, or None where there is no run.

    Raises:
        UserError: the file is there and cannot be read.
    """
    path = run_dir / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict) or RUN_KEYS - set(run):
            raise ValueError(f"it lacks some of {', '.join(sorted(RUN_KEYS))}")
        return run
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Train again with another --output."
        ) from error


def write_run(run_dir: Path, description: Mapping[str, Any]) -> None:
    """Write run.json atomically."""
    run_dir.mkdir(parents=True, exist_ok=True)
    replace_json(run_dir / "run.json", description)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Dotted names of the settings that differ between two (nested) configs as dicts."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += changed_fields(before, after, f"{where}{key}.")
        elif before != after or (key in old) != (key in new):
            changed.append(f"{where}{key}")
    return changed


def check_same_run(
    run_dir: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    may_change: Collection[str] = MAY_CHANGE,
) -> None:
    """Refuse to resume a run under settings that would make it another run.

    `old` and `new` are contents of run.json, before and now; `may_change` names settings.

    Raises:
        UserError: names each setting with its old and new value.
    """
    refused = [
        f"{name} (was {_at(old['config'], name)!r}, now {_at(new['config'], name)!r})"
        for name in changed_fields(old["config"], new["config"])
        if name not in may_change
    ]
    if refused:
        raise UserError(
            f"{run_dir} was trained with other settings: {'; '.join(refused)}. Resume it as it "
            f"was (`lmdiff train --resume {run_dir}`), or train anew with another --output."
        )
    warn_about_changes(old, new)


def check_same_agent(run_dir: Path, agent: Mapping[str, Any]) -> dict[str, Any]:
    """The run's manifest, if it is this agent's: another task, say, is another run.

    The loop compares its own settings (`check_same_run`); these are the rest.

    Args:
        run_dir: of a run whose manifest tells its "agent".
        agent: the agent's config as a dict, now.

    Raises:
        UserError: there is no run, or one of other settings.
    """
    run = read_run(run_dir)
    if run is None:
        raise UserError(f"Nothing to resume in {run_dir}: it has no run.json. Known runs: runs/*")
    changed = [
        name
        for name in changed_fields(run["manifest"]["agent"], agent)
        if name.split(".")[0] not in ("training", "evaluation", "name", "description")
    ]
    if changed:
        raise UserError(
            f"{run_dir} was trained with other settings of {', '.join(changed)}. Train anew with "
            "another --output."
        )
    return run["manifest"]


def warn_about_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Warn about what a resumed run may differ in, at the price of not being bit-identical."""
    # Runs of before `launch` was written lack it: nothing is known of how they were started.
    launch, launched = new["launch"], old.get("launch", new["launch"])
    pairs = {
        "world size": (old["world_size"], new["world_size"]),
        "batch size": (old["config"]["batch_size"], new["config"]["batch_size"]),
        "gradient accumulation": (old["gradient_accumulation"], new["gradient_accumulation"]),
        "backend": (launched["backend"], launch["backend"]),
        "device": (launched["device"], launch["device"]),
        "torch": (old["versions"].get("torch"), new["versions"].get("torch")),
        "number of threads": (old["machine"]["threads"], new["machine"]["threads"]),
    }
    for name, (before, after) in pairs.items():
        if before != after:
            warnings.warn(
                f"Resuming with another {name} ({before} before, {after} now): the run goes on, "
                "but is no longer the one that an uninterrupted run would have been.",
                stacklevel=2,
            )


def package_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit of the clone that this package lies in; None for an installed one."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout

    try:
        # A virtual environment may lie inside another project's clone: is this file tracked?
        if not git("ls-files", here.name):
            return None
        return git("rev-parse", "HEAD").strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, threads and accelerator."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.platform(),
    }


def _at(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
