"""A time limit for a call, in this process: for reward functions that hang."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any


class TimeUp(BaseException):
    """The limit has passed. No `Exception`: what is interrupted must not swallow it."""


def call_within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call()` returns, unless it takes longer than `seconds`.

    In the main thread of a Unix system a timer's signal interrupts it: loops, waiting, and also the
    pattern matching of `re`. Elsewhere it runs in a thread of its own, which is left behind if it
    does not return (Python cannot end a thread). Code in C that never looks for signals cannot be
    interrupted either way; it returns when it returns.

    Raises:
        TimeUp: it took longer.
    """
    alarm = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    return _with_alarm(seconds, call) if alarm else _in_thread(seconds, call)


def _with_alarm(seconds: float, call: Callable[[], Any]) -> Any:
    def ring(*_: Any) -> None:
        raise TimeUp

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    # It rings again each second: a bare `except:` in a loop may have swallowed the first.
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also if it rang between the call's end and the line above
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:  # another alarm was set before (pytest-timeout): it still rings at its time
            rest = max(left - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


def _in_thread(seconds: float, call: Callable[[], Any]) -> Any:
    done: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeUp
    return done[0]
