"""Processes that generate data may die: then it is said, and nothing half-made is kept."""

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from lmdiff.errors import UserError


@contextmanager
def telling_of_deaths(what: str, less: str) -> Iterator[None]:
    """A block that waits for a pool of processes.

    Args:
        what: whose data they generate.
        less: the option that asks for less.

    Raises:
        UserError: a process of the pool died.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            f"A process that generated data for {what} died; was memory short? Nothing was "
            f"written. Run the command again, or ask for less: {less}"
        ) from error
