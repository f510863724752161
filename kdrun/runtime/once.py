"""Lines of the log that are said once, of what is found out in a check, and again when a run begins."""

import logging
from functools import lru_cache


@lru_cache(maxsize=64)
def say(logger: str, line: str) -> None:
    """Log a line, unless this process has."""
    logging.getLogger(logger).info(line)
