"""What an observation of OGBench's manipulation worlds says of their goals, and nothing else.

Left, right, front and back are those of a viewer of the rendered picture, who faces the robot: left
is -y, the front (near the viewer, low in the picture) is +x.
"""

from dataclasses import dataclass

import numpy as np

# OGBench's state observations: joints (6), their speeds (6), then the gripper, then objects.
_CONTACT = 18  # force on a finger pad, clipped to [0, 1]
_OBJECTS = 19  # the cube's position comes first, then quaternion and yaw; or the buttons
_CUBE_SIZE = 9
_BUTTON_SIZE = 4  # one-hot state (2), depth, speed
_CENTRE, _SCALE = np.array([0.425, 0.0, 0.0]), 10.0  # of positions
_BUTTON_SCALE, _DRAWER_SCALE, _WINDOW_SCALE = 120.0, 18.0, 15.0

DRAWER_OPEN, WINDOW_OPEN = -0.16, 0.2
"""Metres that they slide; closed is 0."""
DRAWER_HANDLE_Y, WINDOW_HANDLE_X = -0.24, 0.286
"""Where the handles are when closed; the drawer's handle moves against its joint."""
DRAWER_PLACE = np.array([0.33, -0.24, 0.066])
"""Where a cube is put into the open drawer."""

_SLACK = 0.04  # metres: OGBench's tolerance for drawer and window
_PRESSED = -0.02  # depth at which a button toggles
_ON_TABLE = 0.03  # the centre of a cube that lies on the table is 0.02 high
_RELEASED = 0.1  # contact below which a gripper holds nothing (the oracles' threshold)

_COLUMNS = {1: ("",), 3: ("left", "", "right")}
_ROWS = {1: ("",), 3: ("back", "", "front")}


@dataclass(frozen=True)
class Board:
    """Equal cells of the table: `rows` along x (back to front), `columns` along y.

    The outer cells reach as far as the table does. `low`, `high`: corners (x, y) in metres within
    which OGBench puts cubes.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    rows: int
    columns: int

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Cells by name: `back-left`, `left`, `centre`, ..."""
        return {
            "-".join(filter(None, (row, column))) or "centre": (r, c)
            for r, row in enumerate(_ROWS[self.rows])
            for c, column in enumerate(_COLUMNS[self.columns])
        }

    @property
    def _cell(self) -> np.ndarray:
        return (np.array(self.high) - self.low) / (self.rows, self.columns)

    def lies_in(self, place: str, positions: np.ndarray) -> np.ndarray:
        """Whether positions [T, 2 or more] (x, y in metres) are in a cell: [T] bool."""
        cells = np.floor((positions[:, :2] - self.low) / self._cell).astype(int)
        cells = np.clip(cells, 0, (self.rows - 1, self.columns - 1))
        return (cells == self.places[place]).all(-1)

    def draw(self, place: str, rng: np.random.Generator, margin: float = 0.02) -> np.ndarray:
        """A point (x, y) of a cell, at least `margin` metres from its sides."""
        low = np.array(self.low) + self._cell * self.places[place]
        return rng.uniform(low + margin, low + self._cell - margin)


def cube_at(observations: np.ndarray) -> np.ndarray:
    """Positions of the cube in metres: [T, 3]."""
    return observations[:, _OBJECTS : _OBJECTS + 3] / _SCALE + _CENTRE


def in_drawer(observations: np.ndarray) -> np.ndarray:
    """Whether the cube is in the drawer, wherever that is (OGBench's own box): [T] bool."""
    handle = DRAWER_HANDLE_Y - drawer_at(observations)
    low = np.stack([np.full_like(handle, 0.21), handle - 0.27, np.zeros_like(handle)], -1)
    high = np.stack([np.full_like(handle, 0.45), handle - 0.07, np.full_like(handle, 0.15)], -1)
    cube = cube_at(observations)
    return np.asarray(((low <= cube) & (cube <= high)).all(-1))


def drawer_at(observations: np.ndarray) -> np.ndarray:
    """How far the drawer slid: [T] in metres, 0 closed, -0.16 open."""
    return observations[:, -4] / _DRAWER_SCALE


def window_at(observations: np.ndarray) -> np.ndarray:
    """How far the window slid: [T] in metres, 0 closed, 0.2 open."""
    return observations[:, -2] / _WINDOW_SCALE


def _released(observations: np.ndarray) -> np.ndarray:
    return observations[:, _CONTACT] < _RELEASED


def cube_single_states(observations: np.ndarray, board: Board) -> dict[str, np.ndarray]:
    """Goal -> [T] bool: the cube lies on the table at a place, and the gripper let go of it."""
    cube = cube_at(observations)
    lies = (cube[:, 2] < _ON_TABLE) & _released(observations)
    return {f"put the cube {place}": lies & board.lies_in(place, cube) for place in board.places}


def scene_states(observations: np.ndarray, board: Board) -> dict[str, np.ndarray]:
    """Goal -> [T] bool. Button 0 locks the drawer, button 1 the window: red locked, white not."""
    first = _OBJECTS + _CUBE_SIZE
    drawer_free = observations[:, first + 1] > 0.5
    window_free = observations[:, first + _BUTTON_SIZE + 1] > 0.5
    drawer, window = drawer_at(observations), window_at(observations)
    inside = in_drawer(observations)
    on_table = cube_single_states(observations, board)
    return {
        **{goal: holds & ~inside for goal, holds in on_table.items()},
        "put the cube in the drawer": inside & _released(observations),
        "unlock the drawer": drawer_free,
        "lock the drawer": ~drawer_free,
        "unlock the window": window_free,
        "lock the window": ~window_free,
        "open the drawer": np.abs(drawer - DRAWER_OPEN) <= _SLACK,
        "close the drawer": np.abs(drawer) <= _SLACK,
        "open the window": np.abs(window - WINDOW_OPEN) <= _SLACK,
        "close the window": np.abs(window) <= _SLACK,
    }


def puzzle_states(observations: np.ndarray, board: Board) -> dict[str, np.ndarray]:
    """Goal -> [T] bool: a button is down, as far as it toggles itself and its neighbours.

    Colours would be goals too, but a neighbour's press reaches them as well; what is pressed is
    unambiguous. Buttons are numbered in reading order of the picture.
    """
    depths = observations[:, _OBJECTS + 2 :: _BUTTON_SIZE] / _BUTTON_SCALE
    return {
        f"press the {place} button": depths[:, row * board.columns + column] <= _PRESSED
        for place, (row, column) in board.places.items()
    }
