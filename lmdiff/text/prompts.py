"""Prompts of one's own: rows from a JSONL or Parquet file, or from a `datasets` id.

A row is a dictionary with `prompt` (a text, or a conversation in TRL's form), perhaps `completion`,
and other columns, which reward functions receive.
"""

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmdiff.errors import UserError

Row = dict[str, Any]

_FILES = (".jsonl", ".json", ".parquet")


def read_prompts(
    source: str | Path,
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    required: Sequence[str] = (),
    limit: int | None = None,
) -> list[Row]:
    """Read rows and check them.

    Args:
        source: a .jsonl or .parquet file, or a data set's id, with `:CONFIG` where it has several
            configurations (`openai/gsm8k:main`).
        split: of a data set; files have none.
        prompt_column: becomes `prompt`.
        required: columns that every row must have besides, such as `completion` for SFT.
        limit: at most so many rows, the first.

    Raises:
        UserError: names the file and line (or row) that is wrong, or the package that is missing.
    """
    path = Path(source)
    if path.suffix.lower() in _FILES:
        if not path.is_file():
            raise UserError(f"No file {path}.")
        if path.suffix.lower() == ".parquet":
            rows = ((f"{path}, row {i}", row) for i, row in enumerate(_parquet(path), 1))
        else:
            rows = _json_lines(path)
    else:
        rows = (
            (f"{source} ({split}), row {i}", row)
            for i, row in enumerate(_dataset(str(source), split), 1)
        )
    found: list[Row] = []
    for place, row in rows:
        if limit is not None and len(found) == limit:
            break
        found.append(_checked(row, place, prompt_column, required))
    if not found:
        raise UserError(f"{source} has no prompts.")
    return found


def check_prompts(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The same check for rows that are there already: a list, or a `datasets.Dataset`.

    Raises:
        UserError: names the row that is wrong.
    """
    found = [_checked(dict(row), f"row {i}", "prompt", ()) for i, row in enumerate(rows, 1)]
    if not found:
        raise UserError("The data set has no prompts.")
    return found


def _checked(row: Row, place: str, prompt_column: str, required: Sequence[str]) -> Row:
    for name in (prompt_column, *required):
        if row.get(name) is None:
            raise UserError(f"{place}: the column {name!r} is missing (it has {_named(row)}).")
    row = {"prompt" if name == prompt_column else name: value for name, value in row.items()}
    prompt = row["prompt"]
    is_conversation = (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m
            for m in prompt
        )
    )
    if not is_conversation and not (isinstance(prompt, str) and prompt.strip()):
        raise UserError(
            f"{place}: a prompt is a text, or a list of messages with role and content, not "
            f"{prompt!r:.80}."
        )
    completion = row.get("completion")
    if completion is not None and not isinstance(completion, (str, list)):
        raise UserError(f"{place}: a completion is a text, not {completion!r:.80}.")
    return row


def _named(row: Row) -> str:
    return ", ".join(map(repr, row)) or "none"


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            place = f"{path}, line {number}"
            try:
                # A byte order mark, which Windows' editors write, is no part of the text.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8 ({error.reason}).") from error
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                hint = " One JSON object a line is read, not one list." if number == 1 else ""
                raise UserError(f"{place}: not JSON ({error}).{hint}") from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{place}: a row is a JSON object, not {type(row).__name__}. One object a "
                    "line is read."
                )
            yield place, row


def _parquet(path: Path) -> Iterable[Row]:
    parquet = _optional("pyarrow.parquet", "pyarrow", f"Reading {path.name}")
    try:
        table = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise UserError(f"{path} is not a Parquet file: {error}") from error
    for batch in table.iter_batches(batch_size=1024):
        yield from batch.to_pylist()


def _dataset(source: str, split: str) -> Iterable[Row]:
    datasets = _optional("datasets", "datasets", f"Reading the data set {source!r}")
    name, _, config = source.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # whatever a hub, a disk or a loader may raise
        raise UserError(
            f"The data set {source!r} (split {split!r}) could not be loaded: {error}. A file is "
            f"read if its name ends in {', '.join(_FILES)}."
        ) from error


def _optional(module: str, package: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs a package: pip install {package}") from error
