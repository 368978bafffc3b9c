"""OGBench point mazes: the world, the words for its states, success, and the data's expert.

The maze is an array that prints as people see it: row 0 (a wall) on top, columns from the left.
OGBench's y axis points the other way on a plot, so everything that people see or say (pictures,
phrases, results) uses (row, column) coordinates in cells, where integers are cell centres.

Source: Park et al., "OGBench", 2024 (arXiv:2410.20092); environments of the package `ogbench`.
"""

import tempfile
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np

from lmdiff.errors import UserError

Cell = tuple[int, int]

NAMES = ("pointmaze-medium", "pointmaze-large", "pointmaze-giant")

# OGBench's neighbour order; the expert breaks ties by it.
_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))

# Episode lengths of the published data sets: navigate is 2000 steps in the giant maze.
_EPISODE_STEPS = {"navigate": 1001, "stitch": 201}
_GIANT_NAVIGATE_STEPS = 2001
_STITCH_DISTANCE = 4  # cells from start to goal in a `stitch` episode
_ACTION_NOISE = 0.5  # standard deviation of the expert's Gaussian noise


@dataclass(frozen=True)
class PointMaze:
    """One point maze: observations are positions (x, y), actions displacements in [-1, 1]^2."""

    name: str

    grammar = "maze"
    observation_size = 2
    action_size = 2
    max_episode_steps = 1000
    """Of the published evaluation protocol."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"No task {self.name!r}. Known: {', '.join(NAMES)}.")

    def make_env(self) -> gymnasium.Env:
        """A fresh environment, without gymnasium's time limit (roll-outs count steps)."""
        try:
            import ogbench.locomaze  # noqa: F401  (registers the environments)
        except ImportError as error:
            raise UserError(
                f"{self.name} needs the simulator: pip install 'lmdiff[sim]' ({error})"
            ) from error
        # OGBench leaves its XML file behind in the temporary directory; ours is removed.
        previous = tempfile.tempdir
        with tempfile.TemporaryDirectory() as scratch:
            tempfile.tempdir = scratch
            try:
                return gymnasium.make(f"{self.name}-v0").unwrapped
            finally:
                tempfile.tempdir = previous

    @cached_property
    def _geometry(self) -> Any:
        return self.make_env()

    @cached_property
    def maze_map(self) -> np.ndarray:
        """[rows, columns], 1 where there is a wall."""
        return self._geometry.maze_map

    @cached_property
    def free_cells(self) -> list[Cell]:
        """Cells without a wall, in reading order."""
        return [(int(row), int(column)) for row, column in np.argwhere(self.maze_map == 0)]

    def to_cells(self, xy: np.ndarray) -> np.ndarray:
        """Positions [..., 2] (x, y) to (row, column) in cells; integers are cell centres."""
        env = self._geometry
        offset = np.array([env._offset_y, env._offset_x])
        return (np.asarray(xy)[..., ::-1] + offset) / env._maze_unit

    def to_state(self, cell: np.ndarray | Cell) -> np.ndarray:
        """Cells [..., 2] (row, column) to positions (x, y)."""
        env = self._geometry
        offset = np.array([env._offset_x, env._offset_y])
        return np.asarray(cell, dtype=np.float64)[..., ::-1] * env._maze_unit - offset

    def cell_of(self, xy: np.ndarray) -> Cell:
        """The cell that a position lies in."""
        row, column = np.floor(self.to_cells(xy) + 0.5).astype(int)
        return int(row), int(column)

    def centred(self, xy: np.ndarray, margin: float = 0.3) -> np.ndarray:
        """Whether positions [..., 2] lie within `margin` cells of a cell's centre.

        Hindsight phrases describe only such states: "row 3, column 5" is not said of its edge.
        """
        cells = self.to_cells(xy)
        return np.all(np.abs(cells - np.round(cells)) <= margin, axis=-1)

    def distances(self, goal: Cell) -> dict[Cell, int]:
        """Breadth-first distances in cells from every reachable cell to `goal`."""
        found, queue = {goal: 0}, deque([goal])
        while queue:
            row, column = cell = queue.popleft()
            for step_row, step_column in _NEIGHBOURS:
                neighbour = (row + step_row, column + step_column)
                if self.maze_map[neighbour] == 0 and neighbour not in found:
                    found[neighbour] = found[cell] + 1
                    queue.append(neighbour)
        return found

    def episode_steps(self, dataset: str) -> int:
        """Steps of one episode of the published data set of that kind."""
        if dataset == "navigate" and self.name == "pointmaze-giant":
            return _GIANT_NAVIGATE_STEPS
        return _EPISODE_STEPS[dataset]

    @cached_property
    def places(self) -> dict[tuple, frozenset[Cell]]:
        """What the phrases of `prompts/maze.toml` can denote: place -> cells.

        Walls have their `cell` places too, with an empty set: they can be named and refused.
        """
        return places(self.maze_map)


def places(maze_map: np.ndarray) -> dict[tuple, frozenset[Cell]]:
    """Places of a maze [rows, columns] (1 = wall) as sets of free cells."""
    rows, columns = maze_map.shape
    free = [(int(r), int(c)) for r, c in np.argwhere(maze_map == 0)]

    def select(condition) -> frozenset[Cell]:
        return frozenset(cell for cell in free if condition(*cell))

    middle_row, middle_column = (rows - 1) / 2, (columns - 1) / 2
    inside = {
        "top": lambda r, c: r < middle_row,
        "bottom": lambda r, c: r > middle_row,
        "left": lambda r, c: c < middle_column,
        "right": lambda r, c: c > middle_column,
    }
    edges = {
        "top": lambda r, c: r == min(cell[0] for cell in free),
        "bottom": lambda r, c: r == max(cell[0] for cell in free),
        "left": lambda r, c: c == min(cell[1] for cell in free),
        "right": lambda r, c: c == max(cell[1] for cell in free),
    }

    def neighbours(r: int, c: int) -> int:
        return sum(int(maze_map[r + dr, c + dc] == 0) for dr, dc in _NEIGHBOURS)

    dead_ends = select(lambda r, c: neighbours(r, c) == 1)
    named: dict[tuple, frozenset[Cell]] = {("dead_end",): dead_ends}
    for side in inside:
        named["half", side] = select(inside[side])
        named["edge", side] = select(edges[side])
    for v in ("top", "bottom"):
        for h in ("left", "right"):
            quadrant = select(lambda r, c, v=v, h=h: inside[v](r, c) and inside[h](r, c))
            extreme = (1 if v == "top" else rows - 2, 1 if h == "left" else columns - 2)
            nearest = min(abs(r - extreme[0]) + abs(c - extreme[1]) for r, c in quadrant)
            named["quadrant", v, h] = quadrant
            named["corner", v, h] = frozenset(
                (r, c) for r, c in quadrant if abs(r - extreme[0]) + abs(c - extreme[1]) == nearest
            )
            if dead_ends & quadrant:
                named["dead_end", v, h] = dead_ends & quadrant
    # The centre: free cells that touch the middle point (of four, two or one cells, as sizes are).
    reach = (
        0.5 if select(lambda r, c: max(abs(r - middle_row), abs(c - middle_column)) <= 0.5) else 1
    )
    named["centre",] = select(
        lambda r, c: max(abs(r - middle_row), abs(c - middle_column)) <= reach
    )
    for row in range(rows):
        named["row", row] = select(lambda r, c, row=row: r == row)
        for column in range(columns):
            named["cell", row, column] = select(
                lambda r, c, row=row, column=column: (r, c) == (row, column)
            )
    for column in range(columns):
        named["column", column] = select(lambda r, c, column=column: c == column)
    return named
