"""The README's table: one row an agent, from the reports of `lmdiff eval`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmdiff.evaluation.results import read_result, write_result

_COLUMNS = {
    "agent": "agent",
    "training": "training",
    "true": "taught phrases",
    "held_out": "held-out phrases",
    "shuffled": "shuffled",
    "empty": "empty",
    "contradictory": "contradictory",
    "refusal_auroc": "refusal AUROC",
    "ogbench": "OGBench protocol",
}


def add_row(path: Path, report: Mapping[str, Any], run_dir: Path) -> None:
    """Put an agent's report into a result file, in place of an older one of the same agent."""
    rows = read_result(path)["rows"] if path.is_file() else []
    row = _row(report, run_dir)
    kept = [other for other in rows if other["agent"] != row["agent"]]
    rows = sorted([*kept, row], key=lambda other: other["agent"])
    seeds = sorted({seed for other in rows for seed in other["seeds"]})
    write_result(path, f"lmdiff eval AGENT --output {path}", seeds, rows, columns=_COLUMNS)


def _row(report: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"agent": report["agent"], "seeds": report["seeds"]}
    row["training"] = _training(run_dir)
    if "language" in report:
        language = report["language"]
        kinds = ("true", "held_out", "shuffled", "empty", "contradictory")
        row |= {kind: language[kind] for kind in kinds}
        row["refusal_auroc"] = report["refusal"]["auroc"]
    if "ogbench" in report:
        row["ogbench"] = report["ogbench"]["success"]
    return row | {"report": dict(report)}


def _training(run_dir: Path) -> str:
    """Steps and wall time of a run, from its own metrics; empty where they are not kept."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return ""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seconds, before = 0.0, 0
    for line in lines:
        if line["steps_per_second"]:
            seconds += (line["step"] - before) / line["steps_per_second"]
        before = line["step"]
    return f"{before:,} steps, {seconds / 60:.1f} min"
