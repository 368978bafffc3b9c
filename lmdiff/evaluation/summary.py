"""The README's tables: one row an agent, from the reports of `lmdiff eval`."""

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

_TEXT_COLUMNS = {
    "agent": "agent",
    "seed": "training seed",
    "training": "training",
    "solved": "held-out prompts solved",
    "prompts": "prompts",
    "forwards": "model calls a text",
}

_POLICY_COLUMNS = {
    "agent": "agent",
    "seed": "training seed",
    "training": "training",
    "true": "taught",
    "held_out": "held-out",
    "other_words": "other words",
    "empty": "no words",
    "contradictory": "contradictory",
    "swap_does_told": "swap: does what is told",
    "swap_does_other": "swap: does the other instead",
    "swap_passes_other": "swap: does the other on the way",
    "refusal_auroc": "refusal AUROC",
}

_STEPS_COLUMNS = {
    "agent": "agent",
    "steps": "denoising steps",
    "success": "success by taught words",
    "milliseconds": "one action alone, ms",
}


def add_row(path: Path, report: Mapping[str, Any], run_dir: Path) -> None:
    """Put an agent's report into a result file, in place of an older one of the same agent."""
    _put(path, _row(report, run_dir), _COLUMNS, ("agent",))


def add_text_row(path: Path, report: Mapping[str, Any], run_dir: Path) -> None:
    """The same for an agent that writes text: one row for each seed that it was trained with."""
    row = {
        "agent": report["agent"],
        "seed": report["training_seed"],
        "seeds": report["seeds"],
        "training": _training(run_dir),
        "solved": report.get("solved"),
        "prompts": report["episodes"],
        "forwards": report["forwards_per_text"],
        "report": dict(report),
    }
    _put(path, row, _TEXT_COLUMNS, ("agent", "seed"))


def add_policy_row(path: Path, report: Mapping[str, Any], run_dir: Path) -> None:
    """The same for a policy: one row for each seed that it was trained with."""
    language = report["language"]
    row = {key: report[key] for key in ("agent", "world", "algorithm", "seeds")}
    row |= {"seed": report["training_seed"], "training": _training(run_dir)}
    kinds = ("true", "held_out", "other_words", "empty", "contradictory")
    row |= {kind: language[kind] for kind in kinds if kind in language}
    row |= {f"swap_{name}": rate for name, rate in language.get("swap", {}).items()}
    if "refusal" in report:
        row["refusal_auroc"] = report["refusal"]["auroc"]
    _put(path, row | {"report": dict(report)}, _POLICY_COLUMNS, ("agent", "seed"))


def add_few_steps(path: Path, report: Mapping[str, Any]) -> None:
    """A policy's success and time against denoising steps, beside a result file: NAME-steps.json.

    The table then stands in NAME-steps.json, with a row for each number of steps.
    """
    for found in report.get("few_steps", ()):
        row = {key: report[key] for key in ("agent", "seeds")}
        row |= {"seed": report["training_seed"], "episodes": report["episodes"], **found}
        beside = path.with_stem(f"{path.stem}-steps")
        command = f"lmdiff eval AGENT --steps 1,2,4,10 --output {path}"
        _put(beside, row, _STEPS_COLUMNS, ("agent", "seed", "steps"), command)


def _put(
    path: Path,
    row: dict[str, Any],
    columns: dict[str, str],
    same: tuple[str, ...],
    command: str | None = None,
) -> None:
    """Write a row in place of the one with the same values of some columns."""

    def key(other: Mapping[str, Any]) -> list[Any]:
        return [other[name] for name in same]

    rows = read_result(path)["rows"] if path.is_file() else []
    rows = sorted([*(other for other in rows if key(other) != key(row)), row], key=key)
    seeds = sorted({seed for other in rows for seed in other["seeds"]})
    command = command or f"lmdiff eval AGENT --output {path}"
    write_result(path, command, seeds, rows, columns=columns)


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
