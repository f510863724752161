"""Trackers of other tools, whose libraries and servers may hang, fail or crash: a process of its own tells them.

A run's values go through a bounded queue to a thread, and from there to a child process that has the library. The run
never waits for either, but at its end for a bounded time.

That nothing is told twice is seen to where it is told. A tracked run is known by an id of ours, which is made before
anybody is asked and is part of the tracker's state, as all of its points are. A run that goes on tells them all again,
and the tool's process leaves out those that the tracked run has: whatever was lost on the way is made good, too.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, ClassVar, NamedTuple, Protocol

from kdrun.config.schema import flatten
from kdrun.errors import InputError, KdrunError, text
from kdrun.runtime import child
from kdrun.storage.forms import amount, count, number, problem, word
from kdrun.tracking.tracker import End, Epoch, Run, Tracker

log = logging.getLogger(__name__)

_MOST_WAITING = 10_000  # messages; a long run has one an epoch
_TRIED_AGAIN_AFTER = 5.0  # seconds
_NOT_CURVES = ("count", "errors")


class Tracked(NamedTuple):
    """A run as a tool is to have it: an id of ours and its name; the sweep that it is a job of, if it is one, with an
    id and a name of its own; all keys with their values; and the folder of all outputs."""

    id: str
    name: str
    sweep: Mapping[str, str] | None
    keys: Mapping[str, Any]
    folder: str


class Tool(Protocol):
    """A tool as its process knows it: what raises an error is said once and tried again, so each may come twice."""

    @property
    def begin(self) -> Callable[..., None]:
        """`(run: Tracked, *, its tracker's keys)`: find the tracked run that has this id, or make one."""

    def points(self, *, step: int, time: float, values: Mapping[str, float]) -> None:
        """Note numbers at a step, but for those that the tracked run has; `time` in seconds since 1970."""

    def file(self, *, name: str, content: bytes) -> None:
        """Keep a file with the tracked run."""

    def end(self, *, finished: bool) -> None:
        """Say that the run has ended, or that it was interrupted or failed."""


def serve(tool: Tool) -> None:
    """In the child: have the tool do what it is told, until there is no more."""
    os.nice(10)  # training comes first

    def handle(told: Mapping[str, Any], payload: bytes) -> tuple[dict, bytes]:
        about = dict(told["about"])
        if told["what"] == "begin":
            about["run"] = Tracked(**about["run"])
        if told["what"] == "file":
            about["content"] = payload
        try:
            getattr(tool, told["what"])(**about)
        except Exception as error:
            raise KdrunError(_explained(error)) from error
        return {}, b""

    child.serve(handle)


def _explained(error: BaseException) -> str:
    """What an error says, and what the network or the disk has said that it came from: libraries wrap it many times."""
    first = error
    while cause := first.__cause__ or first.__context__:
        first = cause
    said = text(error, 120)
    return f"{text(first)} ({said})" if isinstance(first, OSError) and first is not error else said


def check_installed(name: str, package: str) -> None:
    """Raises InputError where a tracker's package is not installed."""
    try:
        version(package)
    except PackageNotFoundError as error:
        raise InputError(
            f"tracker={name} needs {package}, which is not installed: pip install 'kdrun[{name}]'"
        ) from error


class Aside(Tracker):
    """A run tracked by a tool of somebody else's; one of them says what its process is, and what it needs to know."""

    STATE: ClassVar = {
        "id": word,
        "points": [{"step": count, "time": amount, "values": {str: number}}],
    }

    def __init__(self, name: str, module: str, environment: Mapping[str, str], keys: Mapping, wait_seconds: float):
        self._name, self._module, self._environment = name, module, environment
        self._keys, self._wait_seconds = dict(keys), wait_seconds
        self._id: str | None = None
        self._points: list[dict] = []
        self._teller: _Teller | None = None
        self._is_finished = False

    def restore(self, values: Mapping) -> None:
        """Be the same tracked run, with the points as they were."""
        self._id, self._points = values["id"], values["points"]

    def start(self, run: Run) -> None:
        """Have the tracked run begun, or gone on with: its name, all keys, and the sweep that it is a job of."""
        self._id = self._id or _id(f"{run.run_dir.resolve()} {run.started.isoformat()}")
        sweep = _sweep(run)
        tracked = Tracked(
            id=self._id,
            name=f"{run.title} {run.run_dir.name}",
            sweep=None if sweep is None else {"id": _id(str(sweep.resolve())), "name": sweep.name},
            keys={**dict(flatten(run.config)), **run.hyperparameters},
            folder=str(Path(run.config["outputs"]).resolve()),
        )
        self._teller = _Teller(self._name, self._module, self._environment)
        self._teller.tell("begin", {"run": tracked._asdict(), **self._keys})
        for point in self._points:
            self._teller.tell("points", point)

    def epoch(self, epoch: Epoch) -> None:
        """Have the epoch's numbers told."""
        values = {"epoch": epoch.number, **_named("train", epoch.train), **_named("validation", epoch.validation)}
        self._tell_points(epoch.step, values)

    def end(self, end: End) -> None:
        """Have the best weights' test metrics and the pictures told."""
        from kdrun.tracking import summaries

        self._tell_points(end.step, _named("test", end.test["best"]))
        for name, png in summaries.encoded(end.pictures).items():
            self._tell("file", {"name": f"{name}.png"}, png)
        self._is_finished = True

    def report(self, run: Run, written: Mapping[str, Path]) -> None:
        """Have a comparison tracked as a run of its own."""
        self.start(run)
        for name, path in written.items():
            self._tell("file", {"name": name}, path.read_bytes())
        self._is_finished = True
        self.close()

    def state(self) -> dict:
        """The tracked run, and all that is told of it."""
        return {"id": self._id, "points": self._points}

    def wrong(self, values: Mapping, step: int, epochs: int) -> str | None:
        """Say what of a saved state cannot be: its form, or points of steps that are not done."""
        if found := problem(values, self.STATE):
            return found
        late = [point["step"] for point in values["points"] if point["step"] > step]
        return f"there is a point of step {late[0]}, and {step} are done" if late else None

    def close(self) -> None:
        """Say how it ended, and wait for the tool, but not for ever."""
        if self._teller:
            self._tell("end", {"finished": self._is_finished})
            self._teller.close(self._wait_seconds)

    def _tell_points(self, step: int, values: Mapping) -> None:
        point = {"step": step, "time": time.time(), "values": values}
        self._points.append(point)
        self._tell("points", point)

    def _tell(self, what: str, about: Mapping, payload: bytes = b"") -> None:
        assert self._teller  # it has started
        self._teller.tell(what, about, payload)


class _Teller:
    """What tells a tool's process, in a thread, one thing after another; and says once if that does not work."""

    def __init__(self, name: str, module: str, environment: Mapping[str, str]):
        self._name = name
        self._trouble: str | None = None  # the first one
        self._is_said = False
        self._queue: Queue[tuple[dict, bytes] | None] = Queue(_MOST_WAITING)
        self._is_closing = Event()
        self._thread: Thread | None = None
        try:  # here: it ends with the thread that has started it
            self._child = child.Child(module, environment)
        except OSError as error:
            self._trouble = text(error)
            return
        self._thread = Thread(target=self._tell_all, daemon=True)
        self._thread.start()

    def tell(self, what: str, about: Mapping, payload: bytes = b"") -> None:
        """Have something told, when it can be; at once."""
        try:
            self._queue.put_nowait(({"what": what, "about": dict(about)}, payload))
        except Full:
            self._note("it is far behind, and some of what there is to tell is left out")
        self._say_trouble()

    def close(self, seconds: float) -> None:
        """Wait until all is told, for so long, and end the process."""
        if not self._thread:
            return
        self._is_closing.set()
        with suppress(Full):
            self._queue.put_nowait(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._note(f"it has not taken all that there is to tell in {seconds:g} s after the end")
        self._child.kill()  # the thread, which waits for its answer, hears of it
        self._thread.join()
        self._child.close()
        self._say_trouble()

    def _tell_all(self) -> None:
        while message := self._queue.get():
            try:
                while not self._is_told(*message):
                    if self._is_closing.is_set():
                        return
                    self._is_closing.wait(_TRIED_AGAIN_AFTER)
            except child.Lost as error:
                self._note(f"its process {error}")
                return

    def _is_told(self, told: Mapping, payload: bytes) -> bool:
        try:
            self._child.ask(told, payload, heeds_signals=False)
        except KdrunError as error:  # whatever the library or the server has against it
            self._note(text(error))
            return False
        return True

    def _note(self, trouble: str) -> None:
        self._trouble = self._trouble or trouble

    def _say_trouble(self) -> None:
        """Where log lines may be written: not in the thread."""
        if self._trouble and not self._is_said:
            self._is_said = True
            log.warning("tracker %s: %s. The run goes on without it", self._name, self._trouble.rstrip("."))


def _named(split: str, values: Mapping[str, float]) -> dict[str, float]:
    """A split's numbers as curves are called."""
    return {f"{split}/{name}": value for name, value in values.items() if name not in _NOT_CURVES}


def _id(of: str) -> str:
    return hashlib.sha256(of.encode()).hexdigest()[:32]


def _sweep(run: Run) -> Path | None:
    """The folder of the sweep that a run is a job of."""
    folder = run.run_dir.resolve().parent
    return folder if folder.parent == (Path(run.config["outputs"]) / "sweeps").resolve() else None
