"""Writing files so that a crash leaves either the old content or the new, never a half."""

import json
import os
from pathlib import Path
from typing import Any


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable (a rename is lost without it)."""
    if os.name == "nt":  # Windows cannot open a directory; its renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write and fsync a new file (not atomic by itself)."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def to_json(value: Any) -> str:
    """JSON as all files of a run have it; NaN and infinity are refused, they are not JSON."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def replace_json(path: Path, value: Any) -> None:
    """Write `path` atomically: readers see the old content or the new."""
    temporary = path.with_name(f".tmp-{path.name}")
    write_text(temporary, to_json(value))
    os.replace(temporary, path)
    fsync_directory(path.parent)
