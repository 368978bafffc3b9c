"""What a task family gives to policies: a world in which goals can be told, a judge, an expert.

A world is a gymnasium environment over plain vectors. `reset(options={"goal": key})` says what is
asked; the reward is 1 at the step that achieves it, which ends the episode, and 0 before. Words
for the goals are data: `prompts/FAMILY.toml`, read by lmdiff/goals/sayings.py.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np

from lmdiff.errors import UserError
from lmdiff.tasks.guarded import SECONDS, Guard


class World(gymnasium.Env[np.ndarray, np.ndarray], ABC):
    """One world. A family implements what is abstract here; episodes are kept by this class.

    What a family gets wrong is an `EnvironmentFault` that names the world: a call that raises or
    hangs, an observation or an expert's action of another shape or not finite.

    Actions are vectors in [-1, 1]; where the simulator's are discrete, the largest entry counts.

    Args:
        name: of the world, as recipes say it.
        goals: keys of all goals that can be asked.
        observation_size, action_size: of the vectors.
        episode_steps: time limit.
    """

    family: ClassVar[str]
    """Its grammar: prompts/FAMILY.toml."""
    discrete: ClassVar[bool] = False
    """Whether the simulator's actions are discrete: actions are one-hot then."""
    swappable: ClassVar[bool] = False
    """Whether the start depends on the seed alone, so that one scene serves several goals."""
    cells: tuple[int, int] = (0, 0)
    """Count and size of the like parts that an observation begins with, such as cells of a view."""
    seconds: ClassVar[float] = SECONDS
    """Time limit for one reset or step."""
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(
        self,
        name: str,
        goals: tuple[str, ...],
        observation_size: int,
        action_size: int,
        episode_steps: int,
    ):
        self.name, self.goals, self.episode_steps = name, goals, episode_steps
        self.observation_size, self.action_size = observation_size, action_size
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (observation_size,), np.float32
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)
        self.goal = ""
        """What is asked in this episode."""
        self.steps = 0
        self.guard = Guard(f"world {name}", self.seconds)

    @abstractmethod
    def start(self, seed: int, goal: str | None) -> np.ndarray:
        """Begin an episode: the first observation. `goal` may be ignored if `swappable`."""

    @abstractmethod
    def advance(self, action: np.ndarray) -> np.ndarray:
        """One step of the simulator: the next observation."""

    @abstractmethod
    def achieved(self, goal: str) -> bool:
        """Whether a goal is achieved in the present state."""

    @abstractmethod
    def expert_action(self) -> np.ndarray | None:
        """What an expert does now, towards `self.goal`; None where it does not know.

        It is asked before each step, also where something else is done than it said.
        """

    def possible(self) -> tuple[str, ...]:
        """Goals that make sense from the present start: their objects are there, not achieved."""
        return tuple(goal for goal in self.goals if not self.achieved(goal))

    def draw(self) -> str:
        """The goal of an episode in which none is asked for, if the world is `swappable`."""
        # A scene may leave nothing to do: the goals are all there is then.
        return str(self.np_random.choice(self.possible() or self.goals))

    def holds(self, observations: np.ndarray) -> np.ndarray | None:
        """Which goals hold in which states: [T, observation] -> [T, goals] bool.

        None where an observation does not tell: then there is no hindsight.
        """
        return None

    def switch(self, goal: str) -> None:
        """Ask for another goal from now on, in the same scene."""
        if goal not in self.goals:
            raise UserError(f"{self.name} knows no goal {goal!r}. Known: {', '.join(self.goals)}.")
        self.goal = goal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; `options={"goal": key}`, else a goal is drawn by the seed.

        Raises:
            UserError: an unknown goal.
            EnvironmentFault: the simulator failed.
        """
        super().reset(seed=seed)
        self.steps = self.guard.step = 0
        asked = (options or {}).get("goal")
        observation = self.guard.call(lambda: self._begin(seed, asked))
        return observation, {"goal": self.goal, "success": False}

    def _begin(self, seed: int | None, asked: str | None) -> np.ndarray:
        if asked is not None:
            self.switch(asked)
        start = seed if seed is not None else int(self.np_random.integers(2**31))
        if asked is None and not self.swappable:
            asked = str(self.np_random.choice(self.goals))
        observation = self._checked(self.start(start, asked))
        self.switch(self.draw() if asked is None else asked)
        return observation

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step. `terminated`: the goal is achieved; `truncated`: time is up.

        Raises:
            EnvironmentFault: the simulator failed.
        """
        self.guard.step = self.steps + 1
        observation, reward = self.guard.call(lambda: self._advance(action))
        self.steps += 1
        success, truncated = bool(reward), self.steps >= self.episode_steps
        return observation, reward, success, truncated, {"success": success}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        observation = self._checked(self.advance(np.clip(action, -1.0, 1.0)))
        return observation, self.guard.number(self.achieved(self.goal))

    def advice(self) -> np.ndarray | None:
        """`expert_action`, checked.

        Raises:
            EnvironmentFault: the expert failed.
        """
        self.guard.step = self.steps + 1
        said = self.guard.call(self.expert_action)
        if said is None:
            return None
        return self.guard.vector(said, self.action_space.shape, "an expert's action")

    def _checked(self, observation: np.ndarray) -> np.ndarray:
        found = np.asarray(observation, np.float32)
        return self.guard.vector(found, self.observation_space.shape, "an observation")
