"""Signals end a run between two steps, not in the middle of one; SIGUSR1 only has its state saved.

SIGHUP, which comes when a terminal or an ssh connection is closed, is one of them, except under nohup.
"""

import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from kdrun.errors import Stopped

_received: list[int] = []
_save_asked: list[int] = []


@contextmanager
def on_signals() -> Iterator[None]:
    """While inside, the first SIGINT, SIGTERM or SIGHUP only asks `check` to raise; a second SIGINT or SIGTERM acts at
    once. A second SIGHUP does nothing: shell and kernel both send one."""

    def ask(number, frame):
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        _received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    handlers = dict.fromkeys(_stopping(), ask) | {signal.SIGUSR1: lambda number, frame: _save_asked.append(number)}
    with _handling(handlers):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """While inside, a signal waits for the end, where Stopped is raised: for folders that are made to be noted."""
    with on_signals():
        yield
    check()


class AtOnce(KeyboardInterrupt):
    """A signal came while there was nothing to save. No Exception: imports let those pass unheard."""

    def __init__(self, number: int):
        super().__init__(f"Stopped by {signal.Signals(number).name}.")
        self.exit_code = 128 + number


@contextmanager
def at_once() -> Iterator[None]:
    """While inside, but for `on_signals`, the first signal raises AtOnce where the program is."""

    def stop(number, frame):
        _received.append(number)  # for `check`, should it pass unheard all the same
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise AtOnce(number)

    with _handling(dict.fromkeys(_stopping(), stop)):
        try:
            yield
        finally:
            _received.clear()


def _stopping() -> list[int]:
    hangs_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangs_up]


@contextmanager
def _handling(handlers: Mapping[int, Callable]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """What would be written to a terminal that was closed, which is an error, goes nowhere instead."""
    for descriptor in (1, 2):
        with suppress(OSError):  # closed altogether
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def check() -> None:
    """Raise Stopped if a signal has asked for it."""
    if number := taken():
        raise Stopped(number, f"Stopped by {signal.Signals(number).name}.")


def taken() -> int | None:
    """The number of the signal that has come, if one has; `check` knows of it no more."""
    return _received.pop() if _received else None


def ask(number: int) -> None:
    """Have `check` raise as if the signal had come here: another process of the same job got it."""
    _received.append(signal.Signals(number))


def save_asked() -> bool:
    """Whether SIGUSR1 has come since this was asked last."""
    asked = bool(_save_asked)
    _save_asked.clear()
    return asked
