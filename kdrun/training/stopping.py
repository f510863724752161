"""Signals end a run between two steps, not in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from kdrun.errors import Stopped

_received: list[int] = []


@contextmanager
def on_signals() -> Iterator[None]:
    """While inside, the first SIGINT or SIGTERM only asks `check` to raise; a second one acts at once."""

    def ask(number, frame):
        _received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise Stopped if a signal has asked for it."""
    if _received:
        number = _received.pop()
        raise Stopped(number, f"Stopped by {signal.Signals(number).name}.")
