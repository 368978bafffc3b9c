"""BabyAI's bot as an expert that may be disobeyed and that never hangs.

minigrid's BabyAIBot keeps a stack of subgoals and replans from the action that was really taken. It
can push subgoals for ever (BabyAI-Unlock: 5 of 300 seeds), and asserts where it is at a loss.
"""

from typing import Any

from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

MOST_LOOKS = 300
"""Looks at its stack that the bot may take for one action; it took at most 25 (measured over 720
episodes of five levels)."""


class StuckError(Exception):
    """The bot plans without coming to an action."""


class _PatientBot(BabyAIBot):
    """The bot with a limit on the looks at its stack of subgoals: its endless loops look at it."""

    _looks = 0

    @property
    def stack(self) -> list[Any]:
        self._looks += 1
        if self._looks > MOST_LOOKS:
            raise StuckError
        return self._stack

    @stack.setter
    def stack(self, subgoals: list[Any]) -> None:
        self._stack = subgoals

    def replan(self, action_taken: int | None = None) -> int:
        self._looks = 0
        action = super().replan(action_taken)
        assert action is not None
        return int(action)


class Expert:
    """Advice towards the mission that an environment has now (`env.instrs`)."""

    def __init__(self, env: RoomGridLevel):
        self._env = env
        self._bot: _PatientBot | None = None
        self._taken: list[int] = []
        self._advice: int | None = None
        self._lost = False

    def saw(self, action: int) -> None:
        """Tell which action was taken."""
        self._taken.append(action)

    def advise(self) -> int | None:
        """The action to take now; None, from then on, where the bot is at a loss."""
        if self._bot is not None and not self._taken:
            return self._advice  # asked twice
        if not self._lost:
            try:
                self._advice = self._replan()
            except (StuckError, DisappearedBoxError, AssertionError):
                self._advice, self._lost = None, True
        self._taken.clear()
        return self._advice

    def _replan(self) -> int:
        if self._bot is not None and len(self._taken) == 1:
            return self._bot.replan(self._taken[0])
        # It did not see what happened: a new bot plans from here.
        self._bot = _PatientBot(self._env)
        return self._bot.replan()
