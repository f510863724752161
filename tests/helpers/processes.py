"""kdrun in processes of their own that start in no time: forked from one that has imported TensorFlow already."""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "tf_keras", "kdrun.cli.main", "kdrun.stages.train"])


class Kdrun:
    """A command running in a process of its own; what it prints goes to `said`."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        file_size: int | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before the server starts
        self.said_in = folder / f"said-{time.monotonic_ns()}"
        words = [str(each) for each in arguments]
        given = (words, str(self.said_in), file_size, dict(environment or {}))
        self._process = _context.Process(target=_main, args=given)
        self._process.start()

    def wait(self, seconds: float = 120) -> int:
        """Its exit code, as a shell gives it: negative for the signal that killed it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"still running: {self.said()}"
        return self._process.exitcode

    def signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait_until(self, happened: Callable[[], object], seconds: float = 120) -> bool:
        """Whether something happened before it ended."""
        deadline = time.monotonic() + seconds
        while not happened():
            if not self._process.is_alive():
                return False
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.0005)
        return True

    def said(self) -> str:
        return self.said_in.read_text() if self.said_in.exists() else ""


def _main(arguments: list[str], said_in: str, file_size: int | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    descriptor = os.open(said_in, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    from kdrun.cli.main import main

    sys.exit(main(arguments))
