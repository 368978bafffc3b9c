"""An environment of which nothing wrong passes unnoticed: it raises, hangs, or returns nonsense.

The error names the environment, the step and the fault. Without it, a NaN would become a plan, and
a wrong shape a traceback from inside a network.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from lmdiff.errors import UserError
from lmdiff.time_limits import TimeUp, call_within

SECONDS = 60.0  # for one reset or step; MuJoCo needs less than a millisecond


class Guarded(gymnasium.Wrapper):
    """Checks every reset and step.

    Args:
        env: the environment.
        name: as errors shall call it.
        seconds: for one reset or step.
    """

    def __init__(self, env: gymnasium.Env, name: str, seconds: float = SECONDS):
        super().__init__(env)
        self.name, self.seconds, self.steps = name, seconds, 0

    def reset(self, **keywords: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's.

        Raises:
            UserError: says what was wrong.
        """
        self.steps = 0
        observation, info = self._call(lambda: self.env.reset(**keywords), 2)
        return self._checked(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As the environment's.

        Raises:
            UserError: says what was wrong, and at which step of the episode.
        """
        self.steps += 1
        found = self._call(lambda: self.env.step(action), 5)
        observation, reward, terminated, truncated, info = found
        try:
            value = float(reward)
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            raise self._error(f"returned {reward!r} as a reward")
        return self._checked(observation), value, bool(terminated), bool(truncated), info

    def _call(self, call: Callable[[], Any], parts: int) -> Any:
        try:
            found = call_within(self.seconds, call)
        except TimeUp:
            raise self._error(f"did not return within {self.seconds:g} s") from None
        except UserError:
            raise
        except Exception as error:
            raise self._error(f"raised {error!r}") from error
        if not isinstance(found, tuple) or len(found) != parts:
            raise self._error(f"returned {type(found).__name__}, not {parts} values")
        return found

    def _checked(self, observation: Any) -> np.ndarray:
        found, expected = np.asarray(observation), self.env.observation_space.shape
        if found.shape != expected:
            raise self._error(f"returned an observation of shape {found.shape}, not {expected}")
        if not np.isfinite(found).all():
            raise self._error("returned an observation that is not finite")
        return found

    def _error(self, what: str) -> UserError:
        where = f"at step {self.steps} of an episode" if self.steps else "at a reset"
        return UserError(
            f"The environment {self.name} {what}, {where}. Nothing that was saved is lost; mend "
            "the environment, then run the command again."
        )
