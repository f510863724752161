"""What can end a run, each with its exit code."""


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
    """A signal asked the run to end."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number
