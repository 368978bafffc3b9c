"""A robot arm at a table, told what to do: OGBench's cube-single, scene and puzzle-3x3.

Observations, actions (gripper's x, y, z, yaw and opening, relative) and random starts are those of
the published `play` and `noisy` data sets. Goals are keys such as "open the drawer" or "put the
cube left"; every one takes one skill: one pick and place, one push or one press.

Source: Park et al., "OGBench", 2024 (arXiv:2410.20092); environments of the package `ogbench`.
"""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", module="glfw")  # it misses a display, which nothing needs
    from ogbench.manipspace.envs.cube_env import CubeEnv
    from ogbench.manipspace.envs.puzzle_env import PuzzleEnv
    from ogbench.manipspace.envs.scene_env import SceneEnv

from lmdiff.errors import UserError
from lmdiff.tasks import tabletop_goals as goals
from lmdiff.tasks.tabletop_expert import Expert, OracleKind, Target
from lmdiff.tasks.world import World

_FRAME_SIZE = 256  # pixels on a side
_OUTSIDE = 0.05  # metres beyond the workspace where no gripper reaches a cube


@dataclass(frozen=True)
class _Table:
    """One world: its simulator, places, judge of observations, and time for one goal."""

    make: Callable[..., Any]
    variant: str
    board: goals.Board
    states: Callable[[np.ndarray, goals.Board], dict[str, np.ndarray]]
    observation_size: int
    episode_steps: int


_TABLES = {
    "cube-single": _Table(
        CubeEnv,
        "single",
        goals.Board((0.3, -0.3), (0.55, 0.3), rows=3, columns=3),
        goals.cube_single_states,
        observation_size=28,
        episode_steps=200,
    ),
    "scene": _Table(
        SceneEnv,
        "scene",
        goals.Board((0.3, -0.07), (0.45, 0.18), rows=1, columns=3),
        goals.scene_states,
        observation_size=40,
        episode_steps=200,
    ),
    "puzzle-3x3": _Table(
        PuzzleEnv,
        "3x3",
        goals.Board((0.275, -0.15), (0.575, 0.15), rows=3, columns=3),
        goals.puzzle_states,
        observation_size=55,
        episode_steps=100,
    ),
}


class Tabletop(World):
    """`cube-single`, `scene` or `puzzle-3x3`.

    Args:
        name: of the world.
        oracle: which of OGBench's experts: `markov` or `plan` (see Expert).

    Raises:
        UserError: no such world.
    """

    family = "tabletop"
    swappable: ClassVar[bool] = True

    def __init__(self, name: str, oracle: OracleKind = "markov"):
        if name not in _TABLES:
            raise UserError(f"No world {name!r}. Known: {', '.join(_TABLES)}.")
        self._table = table = _TABLES[name]
        self._env = table.make(
            env_type=table.variant,
            mode="data_collection",  # random starts; "task" has five fixed ones
            visualize_info=False,  # no transparent cube that shows a target
            terminate_at_goal=False,
        )
        keys = tuple(table.states(np.zeros((1, table.observation_size), np.float32), table.board))
        super().__init__(name, keys, table.observation_size, 5, table.episode_steps)
        self._expert = Expert(self._env, oracle, closed=name == "puzzle-3x3")
        self._observation = np.zeros(table.observation_size, np.float32)
        self._info: dict[str, Any] = {}
        self._rng = np.random.default_rng(0)
        self._renderer: MujocoRenderer | None = None

    def start(self, seed: int, goal: str | None) -> np.ndarray:
        """A scene as the play data draw it: it depends on the seed alone."""
        self._rng = np.random.default_rng(seed)
        observation, self._info = self._env.reset(seed=seed)
        return self._seen(observation)

    def advance(self, action: np.ndarray) -> np.ndarray:
        observation, _, _, _, self._info = self._env.step(action)
        return self._seen(observation)

    def achieved(self, goal: str) -> bool:
        return bool(self._states()[goal][0])

    def holds(self, observations: np.ndarray) -> np.ndarray:
        states = self._table.states(np.asarray(observations, np.float32), self._table.board)
        return np.stack([states[goal] for goal in self.goals], -1)

    def possible(self) -> tuple[str, ...]:
        """Goals that one skill reaches from here.

        A locked drawer or window does not move. A cube off the table is out of reach, and of one
        in the drawer the oracles get hold only sometimes (the published data leave it there).
        """
        states = self._states()
        return tuple(g for g in self.goals if not states[g][0] and self._can(g, states))

    def switch(self, goal: str) -> None:
        super().switch(goal)
        states = self._states()
        target = self._target(goal) if self._can(goal, states) else None
        self._expert.aim(target, int(self._rng.integers(2**31)))

    def expert_action(self) -> np.ndarray | None:
        return self._expert.action(self._info)

    def render(self) -> np.ndarray:
        """The scene from the front: [256, 256, 3] uint8. Without shadows, which take 10x longer."""
        if self._renderer is None:
            if sys.platform == "linux" and "DISPLAY" not in os.environ:
                os.environ.setdefault("MUJOCO_GL", "egl")  # gymnasium would look for a display
            model = self._env.model
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
            model.vis.global_.offwidth = model.vis.global_.offheight = _FRAME_SIZE
            self._renderer = MujocoRenderer(
                model, self._env.data, width=_FRAME_SIZE, height=_FRAME_SIZE, camera_name="front"
            )
        return np.ascontiguousarray(self._renderer.render("rgb_array"))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        self._observation = np.asarray(observation, np.float32)
        return self._observation

    def _states(self) -> dict[str, np.ndarray]:
        return self._table.states(self._observation[None], self._table.board)

    def _can(self, goal: str, states: dict[str, np.ndarray]) -> bool:
        if goal.startswith("put the cube"):
            cube = goals.cube_at(self._observation[None])[0]
            low, high = self._env._workspace_bounds
            if not ((low - _OUTSIDE <= cube) & (cube <= high + _OUTSIDE))[:2].all():
                return False
            if self.name == "scene" and goals.in_drawer(self._observation[None])[0]:
                return False
            return goal != "put the cube in the drawer" or bool(states["open the drawer"][0])
        for thing in ("drawer", "window"):
            if goal in (f"open the {thing}", f"close the {thing}"):
                return bool(states[f"unlock the {thing}"][0])
        return True

    def _target(self, goal: str) -> Target:
        """What the oracles are to reach for a goal."""
        targets = {
            "open the drawer": Target("drawer", slide=goals.DRAWER_OPEN),
            "close the drawer": Target("drawer"),
            "open the window": Target("window", slide=goals.WINDOW_OPEN),
            "close the window": Target("window"),
            "lock the drawer": Target("button", button=0, state=0),
            "unlock the drawer": Target("button", button=0, state=1),
            "lock the window": Target("button", button=1, state=0),
            "unlock the window": Target("button", button=1, state=1),
        }
        if goal in targets:
            return targets[goal]
        if goal.startswith("press"):
            row, column = self._table.board.places[goal.split()[2]]
            return Target("button", button=row * self._table.board.columns + column)
        yaw = float(self._rng.uniform(0, 2 * np.pi))
        if goal == "put the cube in the drawer":
            return Target("cube", position=goals.DRAWER_PLACE, yaw=yaw)
        xy = self._table.board.draw(goal.removeprefix("put the cube "), self._rng)
        return Target("cube", position=np.array([*xy, 0.02]), yaw=yaw)


def make_singletask(name: str, task: int) -> gymnasium.Env:
    """OGBench's own single-task environment, for offline RL without words.

    `name` as in `cube-single`; `task` 1 to 5. Rewards are minus the number of parts that are not
    as asked; episodes have the published length.

    Raises:
        UserError: no such world or task.
    """
    if name not in _TABLES or task not in range(1, 6):
        raise UserError(f"No task {task} of {name!r}: 1 to 5 of {', '.join(_TABLES)}.")
    return gymnasium.make(f"{name}-singletask-task{task}-v0")
