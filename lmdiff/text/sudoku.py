"""Sudoku 4x4: all 288 grids, puzzles with one solution, a checker and the peers' rewards.

A puzzle is 16 characters, row by row, with "0" where a cell is empty; its completion is the solved
grid, 16 digits from 1 to 4.

Splits go by solution grid, as SPG's do (arXiv:2510.09541, 200 grids to train on and 88 for tests):
a puzzle has one solution, so no held-out puzzle can be made of a training grid. d1's split does not
(a million puzzles from 288 grids), and its test grids are all known from training.

Two grids are different if any cell differs. Symmetric ones count as different: the symmetries of
Sudoku (other digits; rows, columns and bands exchanged; transposition) leave two classes of grids
in all, so a split by them could not train. `strict=True` is the middle way: grids that differ only
in which digit is which (12 classes of 24) stay in one split.
"""

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS, Split
from lmdiff.text.answers import tagged_answer, text_of

SIZE, BOX, CELLS = 4, 2, 16
ALPHABET = "01234"
MOST_BLANKS = 12
"""A puzzle with fewer than 4 givens has several solutions."""

_COUNTS = {"train": 200, "validation": 24, "held_out": 64}
_STRICT_COUNTS = {"train": 8, "validation": 1, "held_out": 3}  # classes of 24 grids


def _units() -> list[list[int]]:
    rows = [[SIZE * r + c for c in range(SIZE)] for r in range(SIZE)]
    columns = [list(unit) for unit in zip(*rows, strict=True)]
    corners = itertools.product(range(0, SIZE, BOX), repeat=2)
    boxes = [[SIZE * (r + i) + c + j for i in range(BOX) for j in range(BOX)] for r, c in corners]
    return rows + columns + boxes


UNITS = _units()
"""The 12 rows, columns and boxes, each as four cell numbers."""


def is_grid(text: str) -> bool:
    """Whether 16 characters are a solved grid: each digit once in every row, column and box."""
    return len(text) == CELLS and all(
        {text[cell] for cell in unit} == set("1234") for unit in UNITS
    )


def _all_grids() -> tuple[str, ...]:
    found: list[str] = []

    def fill(cells: str) -> None:
        if len(cells) == CELLS:
            found.append(cells)
            return
        taken = {
            cells[other]
            for unit in UNITS
            if len(cells) in unit
            for other in unit
            if other < len(cells)
        }
        for digit in "1234":
            if digit not in taken:
                fill(cells + digit)

    fill("")
    return tuple(found)


GRIDS = _all_grids()
"""All 288 solved grids, in the order of their digits."""

# For each cell and digit the grids that have it there, as bits: solutions are found by "and".
_WITH = {
    (cell, digit): sum(1 << i for i, grid in enumerate(GRIDS) if grid[cell] == digit)
    for cell in range(CELLS)
    for digit in "1234"
}


def solutions(puzzle: str) -> list[str]:
    """All solved grids that agree with a puzzle's givens.

    Raises:
        ValueError: not 16 characters of 01234.
    """
    if len(puzzle) != CELLS or not set(puzzle) <= set(ALPHABET):
        raise ValueError(f"A Sudoku puzzle is 16 characters of {ALPHABET}, not {puzzle[:40]!r}.")
    left = (1 << len(GRIDS)) - 1
    for cell, digit in enumerate(puzzle):
        if digit != "0":
            left &= _WITH[cell, digit]
    return [grid for i, grid in enumerate(GRIDS) if left >> i & 1]


def relabelled(grid: str) -> str:
    """The representative of a grid's class: digits renamed in order of appearance."""
    order = "".join(dict.fromkeys(grid))
    return grid.translate(str.maketrans(order, "1234"))


@cache
def grids(split: Split, strict: bool = False) -> tuple[str, ...]:
    """The solution grids of a split: 200, 24 and 64 of them (strict: 192, 24 and 72).

    The split is fixed (by a hash, not by a seed), so that every run has the same held-out grids.

    Args:
        split: train, validation or held_out.
        strict: keep grids that differ only by renaming digits together.
    """
    if split not in SPLITS:
        raise UserError(f"No split {split!r}: choose one of {', '.join(SPLITS)}.")
    counts = _STRICT_COUNTS if strict else _COUNTS
    keys = sorted(
        {relabelled(grid) for grid in GRIDS} if strict else set(GRIDS),
        key=lambda key: hashlib.sha256(key.encode()).hexdigest(),
    )
    start = sum(counts[s] for s in SPLITS[: SPLITS.index(split)])
    mine = set(keys[start : start + counts[split]])
    return tuple(grid for grid in GRIDS if (relabelled(grid) if strict else grid) in mine)


def puzzles(
    split: Split,
    count: int,
    blanks: int | tuple[int, int],
    seed: int = 0,
    strict: bool = False,
) -> list[dict[str, Any]]:
    """Distinct puzzles of a split, each with exactly one solution.

    Args:
        split: whose solution grids are used.
        count: how many.
        blanks: empty cells, 1 to 12, or the least and most of them.
        seed: the same seed gives the same puzzles, and more of them begin with the same.
        strict: see `grids`.

    Returns:
        Rows of prompt (the puzzle), completion (the solved grid) and blanks (how many).

    Raises:
        UserError: blanks out of range, or so many different puzzles were not found.
    """
    least, most = (blanks, blanks) if isinstance(blanks, int) else blanks
    if not 1 <= least <= most <= MOST_BLANKS:
        raise UserError(f"blanks = {blanks}: a puzzle has 1 to {MOST_BLANKS} empty cells.")
    rng = random.Random(f"sudoku {split} {least} {most} {seed} {strict}")
    pool = grids(split, strict)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        empty = rng.randint(least, most)
        # Of 12 blanks one draw in twenty has a single solution.
        for _ in range(5000):
            grid, cells = rng.choice(pool), set(rng.sample(range(CELLS), empty))
            puzzle = "".join("0" if cell in cells else grid[cell] for cell in range(CELLS))
            if puzzle not in rows and len(solutions(puzzle)) == 1:
                rows[puzzle] = {"prompt": puzzle, "completion": grid, "blanks": empty}
                break
        else:
            raise UserError(
                f"Only {len(rows)} different puzzles with blanks = {blanks} were found in "
                f"{split}, not {count}: ask for fewer, or for another number of blanks."
            )
    return list(rows.values())


def answer_cells(completion: str) -> str:
    """The cells that a completion gives, in order; at most what it wrote.

    Tagged text: the digits of the last `<answer>`, as d1 and SPG read it. Plain text: its
    characters without spaces, so that a character that is no digit is one wrong cell and does not
    move the others. Only ASCII digits count: `str.isdigit` also takes "²" and "４".
    """
    tagged = tagged_answer(completion)
    if tagged is not None:
        return "".join(c for c in tagged if c in "0123456789")
    return "".join(completion.split())


def share_right(puzzle: str, completion: str) -> float:
    """Share of the puzzle's empty cells that a completion fills rightly: d1's and SPG's reward.

    Missing cells are wrong, and those after the 16th are not read, as with these peers.

    Raises:
        ValueError: the puzzle is not one, has no empty cell or not exactly one solution.
    """
    found = solutions(puzzle)
    if len(found) != 1 or "0" not in puzzle:
        raise ValueError(f"{puzzle} has {len(found)} solutions, {puzzle.count('0')} empty cells.")
    cells = answer_cells(completion)[:CELLS].ljust(CELLS, "0")
    empty = [i for i in range(CELLS) if puzzle[i] == "0"]
    return sum(cells[i] == found[0][i] for i in empty) / len(empty)


def is_solved(puzzle: str, completion: str) -> bool:
    """Whether a completion is a solved grid of exactly 16 cells that keeps the givens."""
    cells = answer_cells(completion)
    return is_grid(cells) and all(
        given in ("0", cell) for given, cell in zip(puzzle, cells, strict=True)
    )


def _puzzle_texts(prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[str]:
    """The column `puzzle` where the data has one, else the prompts."""
    return [str(p) for p in columns.get("puzzle") or map(text_of, prompts)]


def sudoku_reward(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """Reward `sudoku`: the share of empty cells that are right."""
    puzzles = _puzzle_texts(prompts, columns)
    return [share_right(p, text_of(c)) for p, c in zip(puzzles, completions, strict=True)]


def sudoku_solved(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """Reward `sudoku_solved`: 1 for a puzzle that is solved, else 0."""
    puzzles = _puzzle_texts(prompts, columns)
    return [float(is_solved(p, text_of(c))) for p, c in zip(puzzles, completions, strict=True)]
