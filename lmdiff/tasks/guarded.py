"""An environment of which nothing wrong passes unnoticed: it raises, hangs, or returns nonsense.

The error names the environment, the step and the fault. Without it, a NaN would become a plan, and
a wrong shape a traceback from inside a network. Mazes are gymnasium environments and are wrapped
(`Guarded`); worlds watch themselves (lmdiff/tasks/world.py).
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from lmdiff.errors import EnvironmentFault, UserError
from lmdiff.time_limits import TimeUp, call_within

SECONDS = 60.0  # for one reset or step; MuJoCo needs less than a millisecond


class Guard:
    """Watches over the calls of one environment.

    Args:
        name: as errors shall call it, such as "environment arm".
        seconds: for one call.
    """

    def __init__(self, name: str, seconds: float = SECONDS):
        self.name, self.seconds = name, seconds
        self.step = 0
        """Of the episode; 0 at a reset."""

    def call(self, call: Callable[[], Any]) -> Any:
        """What `call()` returns.

        Raises:
            EnvironmentFault: it raised, or took too long.
        """
        try:
            return call_within(self.seconds, call)
        except TimeUp:
            raise self.fault(f"did not return within {self.seconds:g} s") from None
        except UserError:
            raise
        except Exception as error:
            raise self.fault(f"raised {error!r}") from error

    def vector(self, found: Any, shape: tuple[int, ...] | None, what: str) -> np.ndarray:
        """An array of finite numbers; `what` it is, such as "an observation".

        Raises:
            EnvironmentFault: it is not.
        """
        try:
            array = np.asarray(found)
            finite = np.isfinite(array).all()
        except (TypeError, ValueError):
            raise self.fault(f"returned {found!r} as {what}") from None
        if array.shape != shape:
            raise self.fault(f"returned {what} of shape {array.shape}, not {shape}")
        if not finite:
            raise self.fault(f"returned {what} that is not finite")
        return array

    def number(self, reward: Any) -> float:
        """A finite reward.

        Raises:
            EnvironmentFault: it is none.
        """
        try:
            value = float(reward)
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            raise self.fault(f"returned {reward!r} as a reward")
        return value

    def fault(self, what: str) -> EnvironmentFault:
        """The error that says what was wrong, and where."""
        where = f"at step {self.step} of an episode" if self.step else "at a reset"
        return EnvironmentFault(f"The {self.name} {what}, {where}.")


class Guarded(gymnasium.Wrapper):
    """Checks every reset and step.

    Args:
        env: the environment.
        name: as errors shall call it.
        seconds: for one reset or step.
    """

    def __init__(self, env: gymnasium.Env, name: str, seconds: float = SECONDS):
        super().__init__(env)
        self.guard = Guard(f"environment {name}", seconds)

    def reset(self, **keywords: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's.

        Raises:
            EnvironmentFault: says what was wrong.
        """
        self.guard.step = 0
        observation, info = self._call(lambda: self.env.reset(**keywords), 2)
        return self._checked(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As the environment's.

        Raises:
            EnvironmentFault: says what was wrong, and at which step of the episode.
        """
        self.guard.step += 1
        found = self._call(lambda: self.env.step(action), 5)
        observation, reward, terminated, truncated, info = found
        value = self.guard.number(reward)
        return self._checked(observation), value, bool(terminated), bool(truncated), info

    def _call(self, call: Callable[[], Any], parts: int) -> Any:
        found = self.guard.call(call)
        if not isinstance(found, tuple) or len(found) != parts:
            raise self.guard.fault(f"returned {type(found).__name__}, not {parts} values")
        return found

    def _checked(self, observation: Any) -> np.ndarray:
        return self.guard.vector(observation, self.env.observation_space.shape, "an observation")
