"""metrics.jsonl: one JSON object a line, one line a logged step, no step twice."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from accelerate import Accelerator

from lmdiff.disk import telling_of_the_disk
from lmdiff.training.files import write_text
from lmdiff.training.ranks import gather_numbers


class Averages:
    """Sums and counts of metrics since the last logged line; its state goes into checkpoints.

    Non-finite values are left out, so that one bad step does not hide the rest of a window.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            finite = math.isfinite(value)
            self.sums[name] = self.sums.get(name, 0.0) + (value if finite else 0.0)
            self.counts[name] = self.counts.get(name, 0) + finite

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Over all steps and ranks, which must all call it; what was never finite is left out."""
        sums, counts = self.sums, self.counts
        if accelerator.num_processes > 1:
            names = sorted(sums)  # the same ones on every rank: see `Trainable`
            mine = [*(sums[name] for name in names), *(counts[name] for name in names)]
            everyone = gather_numbers(accelerator, mine).sum(0).tolist()
            sums = dict(zip(names, everyone[: len(names)], strict=True))
            counts = dict(zip(names, everyone[len(names) :], strict=True))
        return {name: sums[name] / counts[name] for name in sums if counts[name]}

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])

    def clear(self) -> None:
        self.sums, self.counts = {}, {}


class MetricsFile:
    """Appends lines to `run_dir/metrics.jsonl`, each flushed as it is written.

    Args:
        path: the file.
        up_to: the checkpoint's step; lines beyond it belong to a future that was lost, and are cut.
        writes: only the main process does; the others read what is there, and keep quiet.
    """

    def __init__(self, path: Path, up_to: int, writes: bool = True) -> None:
        self.folder = path.parent
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= up_to]
        self.last: dict[str, Any] = kept[-1] if kept else {}
        self.file: TextIO | None = None
        if not writes:
            return
        text = "".join(_line(entry) for entry in kept)
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
            temporary = path.with_name(f".tmp-{path.name}")
            write_text(temporary, text)
            os.replace(temporary, path)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def write(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line; what is not finite becomes null (NaN is not JSON)."""
        self.last = {name: _plain(value) for name, value in entry.items()}
        if self.file is not None:
            with telling_of_the_disk(self.folder):
                self.file.write(_line(self.last))
                self.file.flush()
        return self.last

    def sync(self) -> None:
        """Make the lines durable, before a checkpoint that counts on them."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.file is not None:
            # What could not be written is tried once more here; that it failed is known.
            with contextlib.suppress(OSError) if error else telling_of_the_disk(self.folder):
                self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file (a torn last line, of a killed process, is left out)."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
