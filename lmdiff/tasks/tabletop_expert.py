"""OGBench's scripted oracles, led to goals that are said: one skill, one target, no side effects.

The stock oracles read their target from the environment's `info`. Here the target is written into
that dictionary instead of into the simulator, so that asking the expert never changes the scene.

Source: Park et al., "OGBench", 2024 (arXiv:2410.20092); oracles of the package `ogbench`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from lmdiff.tasks.tabletop_goals import DRAWER_HANDLE_Y, WINDOW_HANDLE_X

Skill = Literal["cube", "button", "drawer", "window"]
OracleKind = Literal["markov", "plan"]

_ORACLES: Mapping[OracleKind, Mapping[Skill, Any]] = {
    "markov": {
        "cube": CubeMarkovOracle,
        "button": ButtonMarkovOracle,
        "drawer": DrawerMarkovOracle,
        "window": WindowMarkovOracle,
    },
    "plan": {
        "cube": CubePlanOracle,
        "button": ButtonPlanOracle,
        "drawer": DrawerPlanOracle,
        "window": WindowPlanOracle,
    },
}

_CLEAR = 0.2  # metres: no arm starts lower
_CLEAR_OF_WINDOW = 0.28  # its handle is 0.24 high; the stock oracle leaves it so
_NEAR_HANDLE = 0.1


@dataclass(frozen=True)
class Target:
    """What a skill is to reach.

    `position` (x, y, z) and `yaw` are the cube's; `slide` is the drawer's or window's, in metres;
    `button` is to show `state`, or to be pressed where that is None.
    """

    skill: Skill
    position: np.ndarray | None = None
    yaw: float = 0.0
    slide: float = 0.0
    button: int = 0
    state: int | None = None


class Expert:
    """Drives one environment towards one target after another.

    `kind`: `markov` oracles look at the state only, so they cope with whatever else was done
    (`noisy` data sets); `plan` oracles follow a noisy path through time (`play` data sets).
    `closed`: whether the gripper stays closed, as in the published data of the puzzle.
    """

    def __init__(self, env: Any, kind: OracleKind, closed: bool):
        self._env, self._closed = env, closed
        button = {"gripper_always_closed": closed}
        self._oracles = {
            skill: make(env=env, **(button if skill == "button" else {}))
            for skill, make in _ORACLES[kind].items()
        }
        self._target: Target | None = None

    def aim(self, target: Target | None, seed: int) -> None:
        """Go for another target from now on; None: there is nothing that a skill can do."""
        self._target = target
        self._rng = np.random.default_rng(seed)
        self._rising, self._begun = True, False

    def action(self, info: Mapping[str, Any]) -> np.ndarray | None:
        """What to do in the state that the environment's `info` describes."""
        if self._target is None:
            return None
        if self._rising and self._touches(info):
            # The last skill may have left the gripper around something.
            return np.array([0, 0, 1, 0, 1 if self._closed else -1], np.float32)
        self._rising = False
        aimed = {**info, **self._entries(self._target, info)}
        oracle = self._oracles[self._target.skill]
        if not self._begun or oracle.done:  # done without success: once more, from here
            with _global_random_seed(int(self._rng.integers(2**32))):
                oracle.reset(None, aimed)
            self._begun = True
        return np.clip(oracle.select_action(None, aimed), -1.0, 1.0).astype(np.float32)

    def _touches(self, info: Mapping[str, Any]) -> bool:
        """Whether moving sideways could drag something along."""
        gripper = info["proprio/effector_pos"]
        handle = info.get("privileged/window_handle_pos")
        at_window = handle is not None and (
            float(np.linalg.norm(gripper[:2] - handle[:2])) < _NEAR_HANDLE
        )
        return bool(gripper[2] < (_CLEAR_OF_WINDOW if at_window else _CLEAR))

    def _entries(self, target: Target, info: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of `info` that the oracles read their target from."""
        if target.skill == "cube":
            return {
                "privileged/target_block": 0,
                "privileged/target_block_pos": target.position,
                "privileged/target_block_yaw": np.array([target.yaw]),
            }
        if target.skill == "button":
            state = target.state
            if state is None:
                state = 1 - info[f"privileged/button_{target.button}_state"]
            site = self._env._button_site_ids[target.button]
            return {
                "privileged/target_button": target.button,
                "privileged/target_button_state": state,
                "privileged/target_button_top_pos": self._env.data.site_xpos[site].copy(),
            }
        handle = info[f"privileged/{target.skill}_handle_pos"].copy()
        if target.skill == "drawer":
            handle[1] = DRAWER_HANDLE_Y - target.slide
        else:
            handle[0] = WINDOW_HANDLE_X + target.slide
        return {f"privileged/target_{target.skill}_handle_pos": handle}


@contextmanager
def _global_random_seed(seed: int) -> Iterator[None]:
    """The stock oracles draw from numpy's global generator: seed it, then leave it as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
