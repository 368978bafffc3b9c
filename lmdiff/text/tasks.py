"""Text tasks as small objects: rows of a split, rewards by name, and what counts as a prompt.

A row has a prompt, mostly a completion to learn from, and columns that the rewards read.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.goals.descriptions import SPLITS, Split
from lmdiff.text import countdown, sudoku
from lmdiff.text.answers import text_of
from lmdiff.text.config import TextTaskConfig
from lmdiff.text.prompts import Row, read_prompts
from lmdiff.text.tokenizer import PRINTABLE


@dataclass(frozen=True)
class TextTask:
    """What is asked, what was answered to learn from, and how answers are judged."""

    name: str
    alphabet: Sequence[str]
    """Characters and numbers of prompts and completions, for models with fresh weights."""
    rows: Callable[[Split, int, int], list[Row]]
    """(split, count, seed) -> rows, at most `count`; of a file the first ones, whatever the seed.
    """
    rewards: tuple[str, ...]
    """What RL optimises by default: names for `lmdiff.text.rewards.load_rewards`."""
    solved: str
    """The reward that is 1 where a completion is right; empty if nothing can tell."""
    read: Callable[[str], Row]
    """What a user typed, as a row.

    Raises:
        GoalNotUnderstood: it is no prompt of this task.
    """
    columns: int = 48
    """Characters a line in pictures; 4 shows a Sudoku as its grid."""


def make_task(config: TextTaskConfig) -> TextTask:
    """The task that a config describes.

    Raises:
        UserError: settings that describe none.
    """
    makers = {"sudoku": _sudoku, "countdown": _countdown, "file": _file}
    return makers[config.name](config)


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns that rewards receive, as in TRL: all but prompt and completion."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: [row.get(name) for row in rows]
        for name in names
        if name not in ("prompt", "completion")
    }


def _sudoku(config: TextTaskConfig) -> TextTask:
    least, most = config.blanks

    def rows(split: Split, count: int, seed: int) -> list[Row]:
        return sudoku.puzzles(split, count, (least, most), seed, config.strict)

    def read(text: str) -> Row:
        puzzle = "".join(text.split()).replace(".", "0").replace("_", "0")
        try:
            found = sudoku.solutions(puzzle)
        except ValueError as error:
            raise GoalNotUnderstood(f"{error} Write an empty cell as 0, row after row.") from error
        if len(found) != 1 or "0" not in puzzle:
            what = "no empty cell" if "0" not in puzzle else f"{len(found)} solutions"
            raise GoalNotUnderstood(f"{puzzle} has {what}; a puzzle has exactly one to find.")
        return {"prompt": puzzle, "blanks": puzzle.count("0")}

    rewards = config.rewards or ("sudoku",)
    solved = config.solved or "sudoku_solved"
    return TextTask("sudoku", sudoku.ALPHABET, rows, rewards, solved, read, columns=sudoku.SIZE)


def _countdown(config: TextTaskConfig) -> TextTask:
    def rows(split: Split, count: int, seed: int) -> list[Row]:
        return countdown.instances(
            split,
            count,
            config.numbers,
            seed,
            config.largest,
            config.largest_target,
            config.strict,
            config.operators,
        )

    def read(text: str) -> Row:
        try:
            numbers, target = countdown.read_prompt(" ".join(text.split()))
        except ValueError as error:
            raise GoalNotUnderstood(str(error)) from error
        if len(numbers) != config.numbers:
            raise GoalNotUnderstood(
                f"{text!r} gives {len(numbers)} numbers; this agent was taught {config.numbers}."
            )
        prompt = countdown.prompt_of(numbers, target)
        return {"prompt": prompt, "numbers": numbers, "target": target}

    rewards = config.rewards or ("countdown",)
    solved = config.solved or "countdown_solved"
    return TextTask("countdown", countdown.ALPHABET, rows, rewards, solved, read)


def _file(config: TextTaskConfig) -> TextTask:
    if not config.source:
        raise UserError("task.name = 'file' needs a file or a data set: --task.source FILE.jsonl")

    def every_row(split: Split) -> list[Row]:
        source, part = config.source, config.split
        if split == "held_out" and config.held_out:
            is_file = Path(config.held_out).suffix.lower() in (".jsonl", ".json", ".parquet")
            source, part = (config.held_out, part) if is_file else (source, config.held_out)
        found = read_prompts(source, split=part, prompt_column=config.prompt_column)
        if split == "held_out" and config.held_out:
            return found
        return [row for row in found if _split_of(row, bool(config.held_out)) == split]

    def as_asked(row: Row) -> Row:
        """With the completion under its usual name, and the prompt as a conversation."""
        names = {config.completion_column: "completion"}
        row = {names.get(name, name): value for name, value in row.items()}
        return row | {"prompt": said(row["prompt"])}

    def said(prompt: Any) -> Any:
        wrapped = config.chat and isinstance(prompt, str)
        return [{"role": "user", "content": prompt}] if wrapped else prompt

    def rows(split: Split, count: int, seed: int) -> list[Row]:
        del seed  # a file has what it has
        found = [as_asked(row) for row in every_row(split)[:count]]
        if not found:
            raise UserError(
                f"{config.source} has no rows for {split.replace('_', ' ')}: it is too small to be "
                "split. Name other prompts by --task.held-out."
            )
        return found

    def read(text: str) -> Row:
        if not text.strip():
            raise GoalNotUnderstood("The prompt is empty.")
        return {"prompt": said(text)}

    return TextTask("file", PRINTABLE, rows, config.rewards, config.solved, read)


def _split_of(row: Mapping[str, Any], held_out_elsewhere: bool) -> Split:
    """By a hash of the prompt: eight tenths train, one validation, one held out.

    The same prompt twice stays in one split. With other held-out prompts that tenth trains too.
    """
    key = text_of(row["prompt"]).encode()
    tenth = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % 10
    split = SPLITS[2] if tenth == 0 else SPLITS[1] if tenth == 1 else SPLITS[0]
    return "train" if held_out_elsewhere and split == "held_out" else split
