import itertools

import pytest

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS
from lmdiff.text import sudoku

GRID = "1234341221434321"
PUZZLE = "0234341221434320"  # both corners blank


def brute_force(puzzle):
    """Solutions found by trying digits, without any of the module's tables."""

    def fits(cells, i):
        row, column = divmod(i, 4)
        for j, other in enumerate(cells):
            r, c = divmod(j, 4)
            near = r == row or c == column or (r // 2, c // 2) == (row // 2, column // 2)
            if j != i and near and other == cells[i]:
                return False
        return True

    def search(cells):
        if "0" not in cells:
            return ["".join(cells)]
        i = cells.index("0")
        found = []
        for digit in "1234":
            trial = [*cells[:i], digit, *cells[i + 1 :]]
            if fits(trial, i):
                found += search(trial)
        return found

    return search(list(puzzle))


def test_there_are_288_grids_and_a_search_finds_the_same():
    assert sorted(sudoku.GRIDS) == sorted(brute_force("0" * 16))
    assert len(set(sudoku.GRIDS)) == 288
    assert all(map(sudoku.is_grid, sudoku.GRIDS))


def test_solutions_are_those_of_a_search():
    for row in sudoku.puzzles("train", 20, (1, 12), seed=3):
        assert sudoku.solutions(row["prompt"]) == brute_force(row["prompt"]) == [row["completion"]]
    two = "1200340000000000"
    assert sorted(sudoku.solutions(two)) == sorted(brute_force(two))


@pytest.mark.parametrize("strict", [False, True])
def test_splits_share_no_grid_and_miss_none(strict):
    parts = {split: sudoku.grids(split, strict) for split in SPLITS}
    assert sum(map(len, parts.values())) == 288
    for first, second in itertools.combinations(parts.values(), 2):
        assert not set(first) & set(second)
    assert len(parts["train"]) == (192 if strict else 200)


def test_strict_splits_share_no_grid_up_to_the_names_of_digits():
    def classes(split, strict):
        return {sudoku.relabelled(grid) for grid in sudoku.grids(split, strict)}

    assert not classes("train", True) & classes("held_out", True)
    assert not classes("train", True) & classes("validation", True)
    assert classes("train", False) & classes("held_out", False)  # what strict is for


def test_no_puzzle_of_a_split_has_its_solution_in_another():
    for split in SPLITS:
        for row in sudoku.puzzles(split, 200, (4, 10)):
            assert sudoku.solutions(row["prompt"]) == [row["completion"]]
            assert row["completion"] in sudoku.grids(split)
            assert row["prompt"].count("0") == row["blanks"]


def test_puzzles_are_distinct_and_seeded():
    rows = sudoku.puzzles("train", 300, 8, seed=1)
    assert len({row["prompt"] for row in rows}) == 300
    assert rows == sudoku.puzzles("train", 300, 8, seed=1)
    assert rows[:50] == sudoku.puzzles("train", 50, 8, seed=1)
    assert rows != sudoku.puzzles("train", 300, 8, seed=2)


def test_the_fewest_givens_are_four():
    assert all(row["blanks"] == 12 for row in sudoku.puzzles("held_out", 5, 12))
    with pytest.raises(UserError, match="1 to 12"):
        sudoku.puzzles("train", 1, 13)
    with pytest.raises(UserError, match="1 to 12"):
        sudoku.puzzles("train", 1, (0, 3))


def test_more_puzzles_than_there_are_is_an_error():
    assert len(sudoku.puzzles("validation", 24 * 16, 1)) == 24 * 16
    with pytest.raises(UserError, match="Only 384 different"):
        sudoku.puzzles("validation", 24 * 16 + 1, 1)


def test_unknown_split():
    with pytest.raises(UserError, match="No split 'test'"):
        sudoku.grids("test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("completion", "share", "solved"),
    [
        (GRID, 1, True),
        (f"{GRID[:4]} {GRID[4:8]}\n{GRID[8:]}", 1, True),
        (f"I think <answer>{GRID}</answer>", 1, True),
        (f"<answer>{'4' * 16}</answer> no: <answer>{GRID}</answer>", 1, True),
        ("1234341221434322", 0.5, False),
        ("1434341221434321", 1, False),  # both blanks right, but a given was overwritten
        ("1", 0.5, False),
        (GRID + "1", 1, False),  # the peers cut; a solved puzzle has 16 cells
        ("", 0, False),
        ("x" + GRID[1:], 0.5, False),  # one wrong cell, not sixteen moved ones
        ("x" + GRID, 0, False),
        ("１２３４３４１２２１４３４３２１", 0, False),  # full-width digits
        ("<answer>" * 20000, 0, False),
        ("<answer></answer>", 0, False),
    ],
)
def test_rewards(completion, share, solved):
    assert sudoku.share_right(PUZZLE, completion) == share
    assert sudoku.is_solved(PUZZLE, completion) is solved


def test_superscript_digits_in_an_answer_are_none():
    # str.isdigit says yes to them, as d1's reader does.
    assert sudoku.answer_cells("<answer>²１12</answer>") == "12"


def test_rewards_of_a_batch_and_of_wordy_prompts():
    prompts, completions = [PUZZLE, PUZZLE], [GRID, "12" * 8]
    assert sudoku.sudoku_reward(prompts, completions) == [1.0, 0.5]
    assert sudoku.sudoku_solved(prompts, completions) == [1.0, 0.0]
    wordy = [[{"role": "user", "content": f"Solve {PUZZLE}"}]] * 2
    spoken = [[{"role": "assistant", "content": f"<answer>{c}</answer>"}] for c in completions]
    assert sudoku.sudoku_reward(wordy, spoken, puzzle=[PUZZLE] * 2, blanks=[2, 2]) == [1.0, 0.5]


@pytest.mark.parametrize("puzzle", ["", "12", "5" + "0" * 15, "0" * 16, GRID, "11" + "0" * 14])
def test_what_is_no_puzzle_is_an_error(puzzle):
    with pytest.raises(ValueError, match=r"puzzle|solutions"):
        sudoku.share_right(puzzle, GRID)
