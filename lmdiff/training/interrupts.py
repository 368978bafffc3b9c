"""Ctrl-C and SIGTERM: finish the step, save, stop. A second one stops at once."""

import signal
import sys
import threading
from types import FrameType, TracebackType


class GracefulStop:
    """While entered, the first SIGINT or SIGTERM only sets `signal`; the second one raises.

    Python delivers signals to the main thread only, so that in any other this does nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.signal = 0
        self.quiet = quiet
        self._previous: dict[int, signal.Handlers | int | None] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)  # type: ignore
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            lost = "Stopped at once; what was trained since the last checkpoint is lost."
            stop(number, lost, shown=not self.quiet)
        self.signal = number
        if not self.quiet:
            print("\nStopping after this step; once more to stop at once.", file=sys.stderr)


def stop(number: int, message: str, shown: bool = True) -> None:
    """Say why, and end as the signal asks: KeyboardInterrupt for Ctrl-C, else exit 128 + number."""
    if shown:
        print(message, file=sys.stderr)
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(128 + number)
