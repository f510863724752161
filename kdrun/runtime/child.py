"""A child process that is asked one thing after another, each as plain values and bytes, and answers likewise.

For code that is not to be trusted with this process: it may crash, hang, or want memory without end. The child is a
new Python whose module's `main` calls `serve`. It ends with its parent, however that ends. No TensorFlow in here.
"""

import ctypes
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdrun import errors
from kdrun.runtime import signals

_START = "import sys; sys.path[:] = sys.argv[3:]; from importlib import import_module as i; i(sys.argv[1]).main()"
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
_AT_ONCE = 1 << 20  # bytes

Answer = tuple[dict[str, Any], bytes]
Handle = Callable[[Mapping[str, Any], bytes], tuple[Mapping[str, Any], bytes]]


class Lost(Exception):
    """The child gives no answer any more; the text says why, as what follows its name."""


class Child:
    """A process that has imported `module` and called its `main`; leaving it ends the process, and those that it has
    started. What it prints is kept for the line that says how it ended; `shows`: it goes to the terminal instead."""

    def __init__(self, module: str, environment: Mapping[str, str], shows: bool = False):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__; it has no name on disk
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, module, str(os.getpid()), *(path or os.getcwd() for path in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if shows else self._said,
            start_new_session=True,
            env={**os.environ, **environment},
            bufsize=0,
        )
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)

    @property
    def _streams(self) -> tuple[Any, Any]:
        return self._process.stdin, self._process.stdout

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.close()

    def kill(self) -> None:
        """End the process, and those that it has started; whoever asks it in another thread gets Lost."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Let go of what an ended process has left."""
        for stream in (*self._streams, self._said):
            with suppress(OSError):
                stream.close()

    def ask(
        self, told: Mapping[str, Any], payload: bytes = b"", seconds: float = math.inf, heeds_signals: bool = True
    ) -> Answer:
        """What the child answers. Raises the KdrunError that it ended with, Lost where it is gone or has not answered
        after so many seconds, and with `heeds_signals` Stopped after a signal to this process."""
        line = json.dumps({"told": dict(told), "bytes": len(payload)}).encode() + b"\n"
        try:
            answer, found = self._exchange(
                [memoryview(line), memoryview(payload)], time.monotonic() + seconds, heeds_signals
            )
        except TimeoutError as error:
            raise Lost(f"has not answered in {seconds:g} s") from error
        except (OSError, EOFError) as error:
            raise Lost(self._how_it_ended()) from error
        if "error" in answer:
            raise errors.rebuilt(answer["error"])
        return answer["told"], found

    def _exchange(self, unsent: list[memoryview], deadline: float, heeds_signals: bool) -> Answer:
        to_child, from_child = self._streams
        received, header = bytearray(), None
        with selectors.DefaultSelector() as selector:
            selector.register(to_child, selectors.EVENT_WRITE)
            selector.register(from_child, selectors.EVENT_READ)
            while header is None or len(received) < header["bytes"]:
                if heeds_signals:
                    signals.check()
                if time.monotonic() > deadline:
                    raise TimeoutError
                for key, _ in selector.select(0.2):
                    if key.fileobj is from_child:
                        received += _some(from_child)
                    else:
                        unsent[0] = unsent[0][os.write(to_child.fileno(), unsent[0][:_AT_ONCE]) :]
                while unsent and not unsent[0]:
                    unsent.pop(0)
                if not unsent and to_child in {key.fileobj for key in selector.get_map().values()}:
                    selector.unregister(to_child)
                if header is None and b"\n" in received:
                    line, _, rest = bytes(received).partition(b"\n")
                    received, header = bytearray(rest), json.loads(line)
        return header, bytes(received)

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5)
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 4096))
            lines = self._said.read().decode(errors="replace").strip().splitlines()
            return f"was ended {how}{f' ({lines[-1].strip()[:200]})' if lines else ''}"
        return "has closed its output"


def _some(stream: Any) -> bytes:
    found = os.read(stream.fileno(), _AT_ONCE)
    if not found:
        raise EOFError
    return found


def serve(handle: Handle) -> None:
    """In the child: answer with what `handle` makes of each question, until there are no more."""
    _end_with_parent(int(sys.argv[2]))
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print is no answer
    while line := asked.readline():
        question = json.loads(line)
        try:
            told, payload = handle(question["told"], asked.read(question["bytes"]))
            answer: dict[str, Any] = {"told": dict(told)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the other process is to know
            answer, payload = {"error": errors.plain(error)}, b""
        answers.write(json.dumps({**answer, "bytes": len(payload)}).encode() + b"\n")
        answers.write(payload)
        answers.flush()
    os._exit(0)  # libraries would take a while to end


def _end_with_parent(parent: int) -> None:
    """Have this process killed when its parent is gone: by the kernel, or else by a look every second."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def limit_memory(room: int) -> None:
    """In the child: let this process have so many bytes more than it has; what asks for more gets an error."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        now = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (now + room, most))
