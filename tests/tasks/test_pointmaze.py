"""Point mazes: words for places, one orientation for all, distances, nothing left behind."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from lmdiff.errors import UserError
from lmdiff.tasks.pointmaze import NAMES, PointMaze, places

MEDIUM, LARGE, GIANT = (PointMaze(name) for name in NAMES)
ALL = pytest.mark.parametrize("task", [MEDIUM, LARGE, GIANT], ids=NAMES)


def test_medium_is_the_map_that_people_see() -> None:
    """Written out by hand: row 0 on top, columns from the left."""
    seen = [
        "########",
        "#  ##  #",
        "#  #   #",
        "##   ###",
        "#  #   #",
        "# #  # #",
        "#   #  #",
        "########",
    ]
    drawn = ["".join(" #"[wall] for wall in row) for row in MEDIUM.maze_map]
    assert drawn == seen
    assert MEDIUM.free_cells[:4] == [(1, 1), (1, 2), (1, 5), (1, 6)]


@pytest.mark.parametrize(
    ("task", "place", "cells"),
    [
        (MEDIUM, ("corner", "top", "left"), {(1, 1)}),
        (MEDIUM, ("corner", "top", "right"), {(1, 6)}),
        (MEDIUM, ("corner", "bottom", "left"), {(6, 1)}),
        (MEDIUM, ("corner", "bottom", "right"), {(6, 6)}),
        (MEDIUM, ("edge", "top"), {(1, 1), (1, 2), (1, 5), (1, 6)}),
        (MEDIUM, ("edge", "left"), {(1, 1), (2, 1), (4, 1), (5, 1), (6, 1)}),
        (MEDIUM, ("edge", "bottom"), {(6, 1), (6, 2), (6, 3), (6, 5), (6, 6)}),
        (MEDIUM, ("edge", "right"), {(1, 6), (2, 6), (4, 6), (5, 6), (6, 6)}),
        (
            MEDIUM,
            ("quadrant", "top", "right"),
            {(1, 5), (1, 6), (2, 4), (2, 5), (2, 6), (3, 4)},
        ),
        (MEDIUM, ("centre",), {(3, 3), (3, 4), (4, 4)}),
        (MEDIUM, ("dead_end",), {(6, 5)}),
        (MEDIUM, ("dead_end", "bottom", "right"), {(6, 5)}),
        (MEDIUM, ("row", 3), {(3, 2), (3, 3), (3, 4)}),
        (MEDIUM, ("column", 3), {(3, 3), (5, 3), (6, 3)}),
        (MEDIUM, ("cell", 5, 6), {(5, 6)}),
        (MEDIUM, ("cell", 0, 0), set()),
        (MEDIUM, ("row", 0), set()),
        (MEDIUM, ("column", 7), set()),
        (LARGE, ("corner", "bottom", "right"), {(7, 10)}),
        (LARGE, ("corner", "bottom", "left"), {(7, 1)}),
        (LARGE, ("centre",), {(4, 6)}),
        (LARGE, ("dead_end",), {(5, 4), (7, 1), (7, 10)}),
        (GIANT, ("corner", "top", "right"), {(1, 14)}),
        (GIANT, ("corner", "bottom", "left"), {(10, 1)}),
        (LARGE, ("dead_end", "bottom", "left"), {(5, 4), (7, 1)}),
        (GIANT, ("centre",), {(5, 7), (6, 7), (6, 8)}),
        (GIANT, ("dead_end",), {(1, 1), (5, 9), (5, 14), (7, 6), (8, 3), (8, 12)}),
        (GIANT, ("dead_end", "top", "left"), {(1, 1)}),
    ],
)
def test_places_are_those_that_people_mean(task: PointMaze, place: tuple, cells: set) -> None:
    assert task.places[place] == cells


@ALL
def test_halves_and_quadrants_fit_together(task: PointMaze) -> None:
    named, free = task.places, set(task.free_cells)
    for v, h in [(v, h) for v in ("top", "bottom") for h in ("left", "right")]:
        assert named["quadrant", v, h] == named["half", v] & named["half", h]
        assert named["corner", v, h] <= named["quadrant", v, h]
        assert len(named["corner", v, h]) == 1
    rows, columns = task.maze_map.shape
    # The picture's upper half is above its middle; a middle row belongs to neither half.
    assert named["half", "top"] == {cell for cell in free if 2 * cell[0] < rows - 1}
    assert named["half", "right"] == {cell for cell in free if 2 * cell[1] > columns - 1}
    assert not named["half", "top"] & named["half", "bottom"]


@ALL
def test_every_cell_row_and_column_has_a_name_and_walls_are_empty(task: PointMaze) -> None:
    rows, columns = task.maze_map.shape
    for (row, column), wall in np.ndenumerate(task.maze_map):
        assert task.places["cell", row, column] == (set() if wall else {(row, column)})
    every = set(task.free_cells)
    assert set().union(*(task.places["row", r] for r in range(rows))) == every
    assert set().union(*(task.places["column", c] for c in range(columns))) == every
    assert all(cells <= every for cells in task.places.values())
    assert ("cell", rows, 0) not in task.places


def test_a_maze_without_a_free_middle_still_has_a_centre() -> None:
    """Of 5 by 5 cells with a wall in the middle: the ring around it."""
    maze = np.ones((5, 5), int)
    maze[1:4, 1:4] = 0
    maze[2, 2] = 1
    assert places(maze)["centre",] == {(r, c) for r, c in np.argwhere(maze == 0)}
    maze[2, 2] = 0
    assert places(maze)["centre",] == {(2, 2)}


@ALL
def test_one_orientation_for_words_pictures_and_the_simulator(task: PointMaze) -> None:
    env = task.make_env()
    rng = np.random.default_rng(0)
    cells = rng.uniform(0, task.maze_map.shape, (200, 2))
    xy = task.to_state(cells)
    np.testing.assert_allclose(task.to_cells(xy), cells, atol=1e-12)
    for cell, position in zip(cells, xy, strict=True):
        assert task.cell_of(position) == env.xy_to_ij(position)
        assert task.cell_of(position) == tuple(int(np.floor(part + 0.5)) for part in cell)
    for cell in task.free_cells:
        np.testing.assert_array_equal(task.to_state(cell), env.ij_to_xy(cell))
    # One row down is more y, one column to the right is more x: four units each.
    np.testing.assert_allclose(task.to_state((2, 1)) - task.to_state((1, 1)), [0, 4])
    np.testing.assert_allclose(task.to_state((1, 2)) - task.to_state((1, 1)), [4, 0])


def test_centred_is_within_the_margin_of_both_axes() -> None:
    cells = np.array([[3, 3], [3.29, 3], [3.31, 3], [3, 2.69], [2.75, 3.25]])
    found = MEDIUM.centred(MEDIUM.to_state(cells), margin=0.3)
    assert found.tolist() == [True, True, False, False, True]


@ALL
def test_distances_are_those_of_the_simulators_oracle(task: PointMaze) -> None:
    env = task.make_env()
    start = env.ij_to_xy(task.free_cells[0])
    for goal in task.free_cells:
        _, oracle = env.get_oracle_subgoal(start, env.ij_to_xy(goal))
        reachable = {(int(r), int(c)): int(oracle[r, c]) for r, c in np.argwhere(oracle >= 0)}
        assert task.distances(goal) == reachable


def test_making_environments_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in NAMES:
        env = PointMaze(name).make_env()
        env.reset(seed=0, options={"task_id": 1})
        env.step(env.action_space.sample())
    assert list(tmp_path.iterdir()) == []
    assert tempfile.gettempdir() == str(tmp_path)


def test_an_unknown_task_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"'pointmaze-tiny'.*pointmaze-medium"):
        PointMaze("pointmaze-tiny")


@pytest.mark.parametrize(
    ("task", "dataset", "steps"),
    [(MEDIUM, "navigate", 1001), (GIANT, "navigate", 2001), (GIANT, "stitch", 201)],
)
def test_episodes_are_as_long_as_the_published_ones(
    task: PointMaze, dataset: str, steps: int
) -> None:
    assert task.episode_steps(dataset) == steps
