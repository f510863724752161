"""What can end a run, each with its exit code."""

from pathlib import Path

from kdrun import commands


class KdrunError(Exception):
    """A failure that its message explains: shown as one line, without a traceback."""

    exit_code = 1


class InputError(KdrunError):
    """A config value, a run or a file that cannot be used: what, what was given, what is allowed, what to do."""

    exit_code = 2


class Diverged(KdrunError):
    """The loss is no longer a finite number."""

    exit_code = 3


class Stopped(KdrunError):
    """A signal asked the run to end; `run_dir` is the directory to go on from, where there is one."""

    run_dir: Path | None = None

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        hint = f" Go on with: {commands.resume(self.run_dir)}" if self.run_dir else ""
        return super().__str__() + hint
