"""Measured results as JSON files, and the tables of the documents that are written from them.

A result says what was run, on which commit and machine, with which seeds, and what came out:

    {"command": "...", "commit": "...", "date": "...", "machine": {...}, "seeds": [0, 1],
     "rows": [{"agent": "pointmaze-medium", "success": {"mean": 0.97, "low": 0.94, "high": 0.99}}],
     "title": "...", "columns": {"agent": "agent", "success": "success, %"}}

`title` and `columns` are optional. A document marks the place of a table by its file's name:
`<!-- results:NAME -->` and `<!-- /results:NAME -->`; `scripts/tables` fills it from NAME.json.
"""

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmdiff.errors import UserError

Row = Mapping[str, Any]

_REQUIRED = ("command", "commit", "machine", "seeds", "rows")
_BLOCK = re.compile(
    r"(?P<open><!-- results:(?P<name>[\w.-]+) -->\n).*?(?P<close><!-- /results:(?P=name) -->)",
    re.DOTALL,
)
_MARK = re.compile(r"<!-- /?results:([\w.-]+) -->")


def write_result(
    path: str | Path,
    command: str,
    seeds: Sequence[int],
    rows: Sequence[Row],
    *,
    title: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write a result with the commit, machine and date of this moment; return it.

    Args:
        path: Where to write (docs/results/NAME.json for what documents quote).
        command: The command that measured it, as a reader can repeat it.
        seeds: Every seed that was used.
        rows: What was measured; a rate is {"mean", "low", "high"} as fractions.
        title: A line above the table.
        columns: Keys of the rows to show, in order, with their headings; default: all keys.
    """
    result: dict[str, Any] = {"title": title} if title else {}
    result |= {
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "seeds": list(seeds),
        "rows": [dict(row) for row in rows],
    }
    if columns:
        result["columns"] = dict(columns)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return result


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result and check its form.

    Raises:
        UserError: no such file, no JSON, or a part is missing.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no result {path}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    missing = [key for key in _REQUIRED if not isinstance(result, dict) or key not in result]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}.")
    return result


def commit() -> str:
    """The short hash of the clone that this package runs from; `unknown` for an installed one.

    `-dirty` is added if the code, agents or prompts differ from that commit.
    """
    from lmdiff.training.manifest import git_commit  # imports torch: rendering does without

    revision = git_commit()
    if revision is None:
        return "unknown"
    status = ("git", "status", "--porcelain", "--", ":/lmdiff", ":/agents", ":/prompts")
    edited = subprocess.run(status, capture_output=True, check=True, cwd=Path(__file__).parent)
    return revision[:12] + ("-dirty" if edited.stdout else "")


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, threads, accelerator, Python and torch."""
    from lmdiff.training import manifest

    versions = manifest.package_versions()
    return manifest.machine() | {name: versions[name] for name in ("python", "torch")}


def render_table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, with a line that says how it was measured."""
    rows: list[Row] = result["rows"]
    columns = result.get("columns") or {key: key for row in rows for key in row}
    lines = [f"**{result['title']}**", ""] if result.get("title") else []
    lines.append(_table_line(columns.values()))
    numeric = {
        key: all(isinstance(row.get(key), int | float | Mapping | None) for row in rows)
        for key in columns
    }
    lines.append(_table_line("---:" if numeric[key] else "---" for key in columns))
    lines += [_table_line(format_value(row.get(key)) for key in columns) for row in rows]
    host = result["machine"]
    if isinstance(host, Mapping):
        host = (
            f"{host.get('gpu') or host.get('cpu', '?')}, {host.get('cores', '?')} cores, "
            f"torch {host.get('torch', '?')} with {host.get('threads', '?')} threads"
        )
    seeds = ", ".join(map(str, result["seeds"])) or "none"
    source = f"`{result['command']}`; seeds {seeds}; commit {result['commit']}; {host}."
    return "\n".join([*lines, "", f"<sub>{source}</sub>"])


def _table_line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def format_value(value: Any) -> str:
    """A cell; `{"mean", "low", "high"}` is a rate in percent: `97.2 (94.1-98.8)`.

    With a `unit` it is a quantity in that unit instead: `9.1 (8.9-9.4) ms`.
    """
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if {"mean", "low", "high"} <= value.keys():
            unit = value.get("unit")
            mean, low, high = (
                f"{value[key]:.3g}" if unit else f"{100 * value[key]:.1f}"
                for key in ("mean", "low", "high")
            )
            return f"{mean} ({low}-{high})" + (f" {unit}" if unit else "")
        return ", ".join(f"{key} {format_value(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value))
    return " ".join(str(value).split())


def update_tables(markdown: str | Path, results: str | Path, check: bool = False) -> str:
    """Fill the marked tables of a document; return the differences ("" if there were none).

    Args:
        markdown: The document.
        results: The folder of the JSON files.
        check: Only compare, write nothing.

    Raises:
        UserError: a result is missing or damaged, or a mark is not closed.
    """
    markdown = Path(markdown)
    old = markdown.read_text(encoding="utf-8")
    paired = [match["name"] for match in _BLOCK.finditer(old) for _ in range(2)]
    if sorted(paired) != sorted(_MARK.findall(old)):
        raise UserError(
            f"{markdown}: every <!-- results:NAME --> needs a line of its own and its "
            "<!-- /results:NAME --> after it."
        )

    def fill(match: re.Match[str]) -> str:
        result = read_result(Path(results) / f"{match['name']}.json")
        return f"{match['open']}{render_table(result)}\n{match['close']}"

    new = _BLOCK.sub(fill, old)
    if new != old and not check:
        markdown.write_text(new, encoding="utf-8")
    changes = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{markdown}", f"{markdown} (generated)", lineterm=""
    )
    return "\n".join(changes)


def main(arguments: Sequence[str] | None = None) -> int:
    """`scripts/tables [--check]`: write, or only compare, the tables of README.md and docs/."""
    parser = argparse.ArgumentParser(prog="scripts/tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a table is out of date")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository")
    options = parser.parse_args(arguments)
    documents = [options.root / "README.md", *sorted((options.root / "docs").glob("**/*.md"))]
    stale = False
    try:
        for document in filter(Path.is_file, documents):
            changes = update_tables(document, options.root / "docs" / "results", options.check)
            if changes:
                stale = True
                print(changes if options.check else f"Updated {document}.")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.check and stale:
        print("Tables are out of date. Write them: scripts/tables", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
