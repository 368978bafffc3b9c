"""Crash-safe checkpoints: directories of safetensors and JSON, either whole or not there.

    run_dir/checkpoints/step-00000500/
        module.safetensors  ema.safetensors  optimizer.safetensors   a file for each group
        state.json                                                   everything else
        manifest.json                                                last: sha256 and size of each

It is written under a temporary name, fsynced and renamed. Older ones go only after the new one
has been read back and verified. (`Accelerator.save_state` deletes first and writes in place, and
`load_state` reads damaged files without a word.) Pickle is never written or read: a checkpoint
from a stranger can be wrong, but it cannot run code.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmdiff.errors import UserError
from lmdiff.training.files import fsync_directory, fsync_file, to_json, write_text

FORMAT = 1
TEMPORARY = ".tmp-"
STEP_NAME = re.compile(r"step-(\d{8,})")
# Plain names only: a manifest must not reach out of its directory.
FILE_NAME = re.compile(r"[A-Za-z0-9_]+\.safetensors|state\.json")
MAX_JSON_BYTES = 64 * 2**20


class CheckpointDamaged(UserError):  # noqa: N818 (as in errors.py: named for what happened)
    """A checkpoint is incomplete, altered or not one; `path` and `reason` say which and why."""

    exit_code = 1

    def __init__(self, path: Path, reason: str):
        super().__init__(f"The checkpoint {path} is damaged: {reason}.")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read into memory (CPU tensors)."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    run_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `run_dir/checkpoints/step-NNNNNNNN`, then delete all but the newest `keep` before it.

    Args:
        run_dir: the directory of the run.
        step: steps that were trained.
        tensors: group -> name -> tensor; one safetensors file for each group.
        state: anything JSON can hold.
        keep: how many to keep, this one included (at least 1).

    Raises:
        UserError: the disk refused (what was there before is intact), or this step has a valid
            checkpoint already.
    """
    root = run_dir / "checkpoints"
    target = root / f"step-{step:08d}"
    temporary = root / f"{TEMPORARY}{target.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_dir)
        if target.exists():
            _set_damaged_aside(target)
        temporary.mkdir()
        for group, named in tensors.items():
            # Contiguous copies: safetensors refuses views that share memory (tied weights).
            copies = {name: t.detach().cpu().contiguous().clone() for name, t in named.items()}
            save_file(copies, temporary / f"{group}.safetensors")
            fsync_file(temporary / f"{group}.safetensors")
        write_text(temporary / "state.json", to_json(state))
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        manifest = {"format": FORMAT, "step": step, "files": files}
        write_text(temporary / "manifest.json", to_json(manifest))
        fsync_directory(temporary)
        os.replace(temporary, target)
        fsync_directory(root)
        verify_checkpoint(target)
        _delete_older(root, step, keep)
    except (OSError, SafetensorError) as error:  # safetensors hides the system's behind its own
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"Could not save a checkpoint in {root}: {error}. The ones before it are intact: free "
            f"some space or mend the permissions, then `lmdiff train --resume {run_dir}`."
        ) from error
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify every file of a checkpoint and read it.

    Raises:
        CheckpointDamaged: a file is missing, truncated, altered, extra, a link, or badly named.
    """
    manifest = verify_checkpoint(path)
    try:
        tensors = {
            name.removesuffix(".safetensors"): load_file(path / name)
            for name in manifest["files"]
            if name.endswith(".safetensors")
        }
    except (SafetensorError, OSError) as error:
        raise CheckpointDamaged(path, f"unreadable tensors ({error})") from error
    state = _read_json(path, "state.json")
    return Checkpoint(path, manifest["step"], tensors, state)


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where none was ever saved.

    Damaged ones that it passes over are named in a warning.

    Raises:
        CheckpointDamaged: there are checkpoints, and not one is whole.
    """
    damaged = None
    for _, path in reversed(list_checkpoints(run_dir)):
        try:
            return load_checkpoint(path)
        except CheckpointDamaged as error:
            warnings.warn(f"{error} Falling back to the one before it.", stacklevel=2)
            damaged = error
    if damaged is not None:
        reason = f"{damaged.reason}; and no older one is whole. Train again with another --output"
        raise CheckpointDamaged(damaged.path, reason)
    return None


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, path) of what looks like a checkpoint, oldest first; nothing is verified."""
    root = run_dir / "checkpoints"
    if not root.is_dir():
        return []
    found = []
    for path in root.iterdir():
        match = STEP_NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check that a checkpoint is exactly what its manifest says; returns the manifest.

    Raises:
        CheckpointDamaged: with the reason.
    """
    match = STEP_NAME.fullmatch(path.name)
    if not match or path.is_symlink() or not path.is_dir():
        raise CheckpointDamaged(path, "not a directory called step-NNNNNNNN")
    manifest = _read_json(path, "manifest.json")
    if set(manifest) != {"format", "step", "files"} or not isinstance(manifest["files"], dict):
        raise CheckpointDamaged(path, "manifest.json has unexpected keys")
    if manifest["format"] != FORMAT:
        raise CheckpointDamaged(path, f"unknown format {manifest['format']!r}, known: {FORMAT}")
    if manifest["step"] != int(match[1]):
        raise CheckpointDamaged(path, "manifest.json names another step than the directory")
    expected = manifest["files"]
    for name in sorted(expected):
        if not FILE_NAME.fullmatch(name):
            raise CheckpointDamaged(path, f"manifest.json lists an unsafe file name, {name!r}")
    present = {entry.name for entry in path.iterdir()} - {"manifest.json"}
    for name in sorted(present - set(expected)):
        raise CheckpointDamaged(path, f"{name!r} does not belong there")
    if "state.json" not in expected:
        raise CheckpointDamaged(path, "state.json is missing")
    for name, description in sorted(expected.items()):
        _require_regular_file(path, name)
        if _describe(path / name, expected=description) != description:
            raise CheckpointDamaged(path, f"{name} has changed (size or sha256)")
    return manifest


def remove_leftovers(run_dir: Path) -> None:
    """Delete what interrupted saves and deletions left behind."""
    for path in (run_dir / "checkpoints").glob(f"{TEMPORARY}*"):
        shutil.rmtree(path)


def _describe(path: Path, expected: Any = None) -> dict[str, Any]:
    """Size and sha256 of a file; where the size is not the expected one, no hash is needed."""
    size = path.stat().st_size
    if isinstance(expected, dict) and expected.get("size") != size:
        return {"size": size, "sha256": ""}
    with open(path, "rb") as file:
        return {"size": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _require_regular_file(path: Path, name: str) -> None:
    try:
        mode = (path / name).lstat().st_mode
    except FileNotFoundError:
        raise CheckpointDamaged(path, f"{name} is missing") from None
    if not stat.S_ISREG(mode):  # links, pipes, devices
        raise CheckpointDamaged(path, f"{name} is not a plain file")


def _read_json(path: Path, name: str) -> dict[str, Any]:
    _require_regular_file(path, name)
    if (path / name).stat().st_size > MAX_JSON_BYTES:
        raise CheckpointDamaged(path, f"{name} is too large")
    try:
        text = (path / name).read_bytes().decode("utf-8")
        value = json.loads(text)
        # Byte for byte what we write: no flipped byte is without effect, white space included.
        whole = isinstance(value, dict) and to_json(value) == text
    except (ValueError, RecursionError) as error:
        raise CheckpointDamaged(path, f"{name} is not valid JSON ({error})") from error
    if not whole:
        raise CheckpointDamaged(path, f"{name} was not written by lmdiff")
    return value


def _set_damaged_aside(target: Path) -> None:
    """Make room where a damaged checkpoint has the name; a valid one is never overwritten."""
    try:
        verify_checkpoint(target)
    except CheckpointDamaged:
        _delete(target)
        return
    raise UserError(f"{target} exists already and is whole; lmdiff does not overwrite it.")


def _delete_older(root: Path, step: int, keep: int) -> None:
    older = [path for other, path in list_checkpoints(root.parent) if other < step]
    for path in older[: max(0, len(older) - (max(keep, 1) - 1))]:
        _delete(path)


def _delete(path: Path) -> None:
    # Renamed first, so that a half-deleted checkpoint is never taken for a damaged one.
    trash = path.with_name(f"{TEMPORARY}deleted-{path.name}")
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    os.replace(path, trash)
    shutil.rmtree(trash)
