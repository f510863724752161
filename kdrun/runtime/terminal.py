"""Our own lines on the terminal."""

import logging
import sys
from contextlib import suppress


class _Console(logging.Handler):
    """Prints to whatever standard output is at the moment, so that lines pass above a live progress bar; where that is
    gone or has no room, a run goes on without them."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            print(self.format(record), file=sys.stdout, flush=True)


def log_to_terminal() -> None:
    """Print kdrun's log lines; safe to call again."""
    logger = logging.getLogger("kdrun")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
