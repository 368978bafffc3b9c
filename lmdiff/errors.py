"""Errors that a user can mend: what is wrong, why, and the command that mends it."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in what was asked. The CLI prints the message alone, without a traceback.

    Its `exit_code` is the process's: 2 for wrong use (see `lmdiff --help`).
    """

    exit_code = 2


class EnvironmentFault(UserError):  # noqa: N818 (the fault is not the user's mistake)
    """An environment raised, hung or returned nonsense.

    Args:
        what: the environment did, and where.
        kept: what is not lost, and the way on.
    """

    def __init__(
        self,
        what: str,
        kept: str = "Nothing that was saved is lost; mend it, then run the command again.",
    ):
        super().__init__(what, kept)  # both are kept when processes hand it on
        self.what = what

    def __str__(self) -> str:
        return " ".join(self.args)


class GoalNotUnderstood(UserError):  # noqa: N818 (it is an answer, and is named as one)
    """The agent was not taught this goal; `nearest` holds known goals that come closest."""

    exit_code = 3

    def __init__(self, message: str, nearest: Sequence[str] = ()):
        super().__init__(message)
        self.nearest = list(nearest)
