"""MetaWorld: fifty tasks of a robot arm, told in words, with scripted experts.

Source: Yu et al., "Meta-World", 2019 (arXiv:1910.10897); environments and experts of the package
`metaworld` (v3 tasks).
"""

import os
import sys
import warnings
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE, MT10_V3
from metaworld.policies import ENV_POLICY_MAP

from lmdiff.errors import UserError
from lmdiff.tasks.world import World

MT10 = tuple(key.removesuffix("-v3") for key in MT10_V3)
MT50 = tuple(key.removesuffix("-v3") for key in ALL_V3_ENVIRONMENTS)

# The experts take 36 to 185 steps on average (80 are a second); what is over leaves room for a
# second attempt. The stock limit is 500.
_EPISODE_STEPS = 300
_FRAME_SIZE = 256
# Over the robot's right shoulder, so that the arm does not hide its hand. The scenes' own corner
# cameras hang upside down.
_CAMERA = {
    "lookat": np.array([0.0, 0.7, 0.1]),
    "distance": 1.4,
    "azimuth": 145.0,
    "elevation": -32.0,
}


class MetaWorld(World):
    """`metaworld-mt10`, `metaworld-mt50`, or one task such as `metaworld-door-open`.

    A goal is a task, and every task has a scene of its own, in which objects and targets are placed
    by the seed. The placements are drawn afresh from the task's own distribution; the stock
    benchmark repeats 50 of them, in training and in tests. Success is the environment's.

    Observations (39 numbers, lengths in metres) are those of MetaWorld's multi-task benchmarks: the
    hand (3), how open the gripper is (1), two objects as position and quaternion (14, zeros where
    there is none); the same 18 numbers a step ago; the target's position (3). The target is shown,
    as in MT1, MT10 and MT50 of the package. The meta-learning benchmarks zero it, and then nothing
    tells where to reach, push or place to: "push the puck to the goal" has no answer. Which task is
    asked is in no number; words say it. (Scenes differ, so much of it can also be guessed.)

    Actions are the hand's displacement (3; 1 is a centimetre a step) and the fingers' force (1;
    positive closes).

    Raises:
        UserError: no such task.
    """

    family = "metaworld"

    def __init__(self, name: str):
        wanted = name.removeprefix("metaworld-")
        goals = {"mt10": MT10, "mt50": MT50}.get(wanted, (wanted,))
        if not set(goals) <= set(MT50):
            raise UserError(
                f"MetaWorld has no task {wanted!r}. Known: mt10, mt50, {', '.join(MT50)}."
            )
        super().__init__(name, goals, 39, 4, _EPISODE_STEPS)
        # Making one takes a second; they are kept.
        self._environments: dict[str, Any] = {}
        self._renderers: dict[str, MujocoRenderer] = {}
        self._experts = {goal: ENV_POLICY_MAP[f"{goal}-v3"]() for goal in goals}
        self._task = ""
        self._observation = np.zeros(39)
        self._success = False
        self.shaped = 0.0
        """MetaWorld's own reward of the last step, 0 to 10."""

    def start(self, seed: int, goal: str | None) -> np.ndarray:
        if goal is None:
            raise UserError("A scene of MetaWorld belongs to a task: start needs a goal.")
        environment = self._environment(goal)
        environment.seed(seed)
        # Draw a placement, then begin with it. If `reset` drew it, what is seen first would show
        # things of some tasks (drawer-open, faucet-open, ...) where they were before the draw.
        environment._freeze_rand_vec = False
        environment.reset_model()
        environment._freeze_rand_vec = True
        self._task, self._success = goal, False
        self._observation, _ = environment.reset()
        return self._observation

    def advance(self, action: np.ndarray) -> np.ndarray:
        self._observation, self.shaped, _, _, info = self._environment(self._task).step(
            np.asarray(action, np.float32)
        )
        self._success = bool(info["success"])
        return self._observation

    def achieved(self, goal: str) -> bool:
        return goal == self._task and self._success

    def possible(self) -> tuple[str, ...]:
        """The scene's own task: other tasks lack their objects here."""
        return () if self._success else (self._task,)

    def expert_action(self) -> np.ndarray | None:
        if self.goal != self._task:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": the action is clipped
            action = self._experts[self._task].get_action(self._observation)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def render(self) -> np.ndarray:
        """The scene from above and beside the robot: [256, 256, 3] uint8, 60 ms without a GPU."""
        environment = self._environment(self._task)
        renderer = self._renderers.get(self._task)
        if renderer is None:
            if sys.platform == "linux" and "DISPLAY" not in os.environ:
                os.environ.setdefault("MUJOCO_GL", "egl")  # gymnasium would look for a display
            # Shadows and smooth edges take nine tenths of the time without a graphics card.
            environment.model.vis.quality.shadowsize = 0
            environment.model.vis.quality.offsamples = 0
            renderer = MujocoRenderer(
                environment.model,
                environment.data,
                width=_FRAME_SIZE,
                height=_FRAME_SIZE,
                default_cam_config=_CAMERA,
            )
            self._renderers[self._task] = renderer
        return np.ascontiguousarray(renderer.render("rgb_array"))

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        for environment in self._environments.values():
            environment.close()
        self._renderers.clear()
        self._environments.clear()

    def _environment(self, task: str) -> Any:
        if task not in self._environments:
            make: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"]
            environment = make(seed=0)  # without a seed it would draw from numpy's global generator
            environment.seeded_rand_vec = True  # placements come from the environment's generator
            self._environments[task] = environment
        return self._environments[task]


def dense_reward(world: World) -> float:
    """MetaWorld's own reward, moved to -1 to 0 (for `online.reward`).

    An episode ends at success, which is worth 0: a reward above it would pay for waiting.
    """
    if not isinstance(world, MetaWorld):
        raise UserError(f"{type(world).__name__} has no reward of MetaWorld's: leave it out.")
    return world.shaped / 10 - 1
