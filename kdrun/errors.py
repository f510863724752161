"""Errors that end a run, each with its exit code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun import commands


class KdrunError(Exception):
    """A failure that its message explains: shown as one line, without a traceback."""

    exit_code = 1


class InputError(KdrunError):
    """A config value, a run or a file that cannot be used: what, what was given, what is allowed, what to do."""

    exit_code = 2


class Diverged(KdrunError):
    """A loss, an answer of a network or a number among the results is not a finite number."""

    exit_code = 3


class Unfinished(KdrunError):
    """What ended a run that can go on; `run_dir` is the directory to go on from, where there is one."""

    run_dir: Path | None = None


class NoRoom(Unfinished):
    """The disk is full; `command` is what to give again where there is nothing to go on from."""

    command: str = "the same command"

    def __str__(self) -> str:
        advice = f"Make room, then run again: {self.command}"
        if self.run_dir:
            advice = f"What was saved before is good. Make room, then go on with: {commands.resume(self.run_dir)}"
        return f"{super().__str__()} {advice}"


class Killed(Unfinished):
    """The process that did it is gone, whatever has ended it; what it had saved is good."""

    def __str__(self) -> str:
        if self.run_dir:
            return f"{super().__str__()} Go on with: {commands.resume(self.run_dir)}"
        return f"{super().__str__()} The same command again goes on with it."


class Lost(Unfinished):
    """Another machine of a cluster is gone, whatever has ended it; what the chief had saved is good."""

    def __str__(self) -> str:
        return f"{super().__str__()} The same command on all machines, with resume=auto, goes on."


class Stopped(Unfinished):
    """A signal asked the run to end."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        hint = f" Go on with: {commands.resume(self.run_dir)}" if self.run_dir else ""
        return super().__str__() + hint


def text(error: BaseException, most: int = 200) -> str:
    """What an error says, or what it is, in a line of at most so many characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def plain(error: BaseException) -> dict:
    """An error as plain values, for another process."""
    known = isinstance(error, KdrunError)
    found: dict[str, Any] = {
        "kind": type(error).__name__,
        "text": str(error.args[0] if known and error.args else error),
    }
    if isinstance(error, Unfinished) and error.run_dir:
        found["run_dir"] = str(error.run_dir)
    if isinstance(error, Stopped):
        found["signal"] = error.exit_code - 128
    return found if known else {**found, "kind": "", "text": f"{type(error).__name__}: {error}"}


def rebuilt(values: Mapping[str, Any]) -> KdrunError:
    """The error that `plain` has made plain; of one that is none of kdrun's, a KdrunError with its type and text."""
    if values["kind"] == "Stopped":
        error: KdrunError = Stopped(values["signal"], values["text"])
    else:
        kinds = {kind.__name__: kind for kind in (InputError, Diverged, Unfinished, Killed, Lost, NoRoom)}
        error = kinds.get(values["kind"], KdrunError)(values["text"])
    if isinstance(error, Unfinished) and "run_dir" in values:
        error.run_dir = Path(values["run_dir"])
    return error
