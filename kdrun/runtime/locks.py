"""Locks between processes, waited for in a way that a signal can stop."""

import logging
from collections.abc import Callable

from filelock import AcquireReturnProxy, FileLock, Timeout

from kdrun.runtime import signals

log = logging.getLogger(__name__)


def held(lock: FileLock, waiting: str, attend: Callable[[], object] = signals.check) -> AcquireReturnProxy:
    """The lock, held, to be let go of by `with`. While another process has it, `waiting` is said once, and `attend`
    called five times a second."""
    said = False
    while True:
        try:
            return lock.acquire(timeout=0.2)
        except Timeout:
            if not said:
                log.info(waiting)
            said = True
            attend()
