"""Errors that a user can mend: what is wrong, why, and the command that mends it."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in what was asked. The CLI prints the message alone, without a traceback.

    Its `exit_code` is the process's: 2 for wrong use (see `lmdiff --help`).
    """

    exit_code = 2


class GoalNotUnderstood(UserError):  # noqa: N818 (it is an answer, and is named as one)
    """The agent was not taught this goal; `nearest` holds known goals that come closest."""

    exit_code = 3

    def __init__(self, message: str, nearest: Sequence[str] = ()):
        super().__init__(message)
        self.nearest = list(nearest)
