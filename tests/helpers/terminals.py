"""A program on a terminal of its own, as somebody sits before it."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")


class Terminal:
    """A program in a pseudo-terminal of so many columns; `said` is all that it wrote."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str], columns: int = 120):
        self.said, self._decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        self._process, self._screen = pty.fork()
        if self._process == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
                os.chdir(folder)
                os.execvpe(words[0], list(words), dict(environment))
            finally:
                os._exit(127)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> str:
        """What it writes from now on, as far as what is waited for; escape codes taken out."""
        began, deadline = len(self.said), time.monotonic() + seconds
        while not (found := re.search(pattern, ESCAPE.sub("", self.said[began:]))):
            assert time.monotonic() < deadline and self._read(1), f"{pattern} did not come: {self.said[began:]!r}"
        return found[0]

    def end(self, seconds: float = 200) -> int:
        """Its exit code, when it has ended."""
        deadline = time.monotonic() + seconds
        while self._read(1):
            assert time.monotonic() < deadline, self.said
        os.close(self._screen)
        return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])

    def _read(self, seconds: float) -> bool:
        """Hear for a while; whether there may be more to hear."""
        if not select.select([self._screen], [], [], seconds)[0]:
            return True
        with suppress(OSError):  # it has ended
            if given := os.read(self._screen, 1 << 16):
                self.said += self._decoder.decode(given)
                return True
        return False
