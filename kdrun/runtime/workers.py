"""Worker processes: each does one task after another, is told of it in lines of JSON, and answers in such lines.

A worker is a new Python (nothing is forked: TensorFlow would not bear it) in a session of its own, so that Ctrl-C
reaches this process alone, which then asks all workers to stop. A worker whose parent is gone stops by itself: its
input has ended. No TensorFlow in here.
"""

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun import errors
from kdrun.runtime import devices, signals

log = logging.getLogger(__name__)

_START = "import sys; sys.path[:] = sys.argv[2:]; from importlib import import_module as i; i(sys.argv[1]).main()"
_AT_ONCE = 1.5  # seconds after which a worker that has no step to save is ended
_PATIENCE = 60.0  # seconds for a training state to be saved


@dataclass
class Task:
    """What a worker is to do, as plain values; how far it is, and what came of it.

    Tasks of an equal `key` go to one worker where that is possible, which may then keep what it has compiled.
    """

    name: str  # for the terminal
    does: Mapping[str, Any]
    key: str = ""
    threads: int = 1
    devices: int = 1
    status: str = "waiting"  # running, done, failed
    doing: str = ""  # before its first step
    progress: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    error: BaseException | None = None
    began: float = 0.0
    seconds: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.status in ("done", "failed")


class _Worker:
    """A process, and what it is at."""

    def __init__(self, module: str, number: int, threads: int, devices_of_its_own: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        environment["TF_NUM_INTEROP_THREADS"] = str(threads)  # as one job of several: the other cores are others'
        if gpus := devices.share(number, devices_of_its_own):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.number, self.threads, self.devices = number, threads, devices_of_its_own
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, module, *(path or os.getcwd() for path in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        self.task: Task | None = None
        self.key = ""  # of the task before
        self.has_stepped = False
        self._unread = b""

    @property
    def output(self) -> int:
        """Its descriptor."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def fits(self, task: Task) -> bool:
        """Whether TensorFlow has the threads and devices here that a task is to have: those that it began with."""
        return (self.threads, self.devices) == (task.threads, task.devices)

    def begin(self, task: Task) -> None:
        """Hand it a task."""
        self.task, self.key, self.has_stepped = task, task.key, False
        task.status, task.began = "running", time.monotonic()
        line = json.dumps({"threads": task.threads, **task.does}) + "\n"
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has just died, which is read from its output
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()

    def lines(self) -> list[dict] | None:
        """What it has said since; None where it is gone."""
        given = os.read(self.output, 1 << 16)
        if not given:
            return None
        *whole, self._unread = (self._unread + given).split(b"\n")
        return [json.loads(line) for line in whole]

    def close(self) -> None:
        """Let it go: idle, it ends by itself."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()


class Pool:
    """At most so many workers, which import `module` and call its `main`; tasks that wait, and those at work."""

    def __init__(self, workers: int, module: str):
        self.tasks: list[Task] = []
        self.size = workers
        self._module = module
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._is_stopping = False

    def __enter__(self) -> "Pool":
        from kdrun.runtime.live import Table

        self._table = Table()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        finally:
            self._table.close()

    def submit(self, task: Task, first: bool = False) -> Task:
        """Have a task done as soon as there is a worker for it; `first`: before those that wait already."""
        self.tasks.insert(0 if first else len(self.tasks), task)
        return task

    def wait(self) -> None:
        """Wait until all tasks have ended. Raises Stopped after a signal."""
        while not all(task.has_ended for task in self.tasks):
            self.attend()

    def attend(self, seconds: float = 0.1) -> None:
        """Give idle workers tasks, and hear what workers say for so many seconds. Raises Stopped after a signal."""
        signals.check()
        self._assign()
        for key, _ in self._selector.select(seconds) if self._workers else ():
            self._hear(key.data)
        self._table.show(self.tasks, self.size)

    def _assign(self) -> None:
        for _ in range(self.size):
            waiting = [task for task in self.tasks if task.status == "waiting"]
            idle = [worker for worker in self._workers if worker.task is None]
            if not waiting or (not idle and len(self._workers) >= self.size):
                return
            worker, task = self._match(idle, waiting)
            if worker is None or not worker.fits(task):
                if worker is not None and len(self._workers) >= self.size:
                    self._forget(worker)
                free = set(range(self.size)) - {each.number for each in self._workers}
                worker = _Worker(self._module, min(free), task.threads, task.devices)
                self._workers.append(worker)
                self._selector.register(worker.output, selectors.EVENT_READ, worker)
            worker.begin(task)

    def _match(self, idle: list[_Worker], waiting: list[Task]) -> tuple[_Worker | None, Task]:
        """A worker with a task that is like its last one; else one that no other worker is likely to take soon."""
        for worker in idle:
            for task in waiting:
                if task.key == worker.key and worker.fits(task):
                    return worker, task
        at_work = {worker.key for worker in self._workers if worker.task is not None}
        task = next((task for task in waiting if task.key not in at_work), waiting[0])
        return (idle[0] if idle and len(self._workers) >= self.size else None), task

    def _hear(self, worker: _Worker) -> None:
        lines = worker.lines()
        if lines is None:
            self._bury(worker)
            return
        for line in lines:
            task = worker.task
            if task is None:
                continue
            if "log" in line:
                log.log(line["level"], "%s: %s", task.name, line["log"])
            elif "doing" in line:
                task.doing = line["doing"]
            elif "progress" in line:
                worker.has_stepped = True
                task.progress = line["progress"]
            else:
                worker.task = None
                self._end(task, line.get("result"), errors.rebuilt(line["error"]) if line.get("error") else None)

    def _bury(self, worker: _Worker) -> None:
        """A worker is gone: so is what it was doing since it saved its state last."""
        self._forget(worker)
        code = worker.process.wait()
        if worker.task is not None:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            self._end(worker.task, None, errors.Killed(f"The process of {worker.task.name} was ended {how}."))
            worker.task = None

    def _end(self, task: Task, result: Any, error: BaseException | None) -> None:
        if error and not self._is_stopping:
            log.error("%s failed: %s", task.name, error)
        task.status = "failed" if error else "done"
        task.result, task.error = result, error
        task.seconds = time.monotonic() - task.began

    def _forget(self, worker: _Worker) -> None:
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        worker.close()

    def _stop(self) -> None:
        """End all workers: those at work save their states first; those that have made no step have nothing to save."""
        self._is_stopping = True
        at_work = [worker for worker in self._workers if worker.task is not None]
        for worker in at_work:
            _send(worker, signal.SIGTERM)
        began = time.monotonic()
        reminded = False
        try:
            while at_work and time.monotonic() - began < _PATIENCE:
                for key, _ in self._selector.select(0.1):
                    self._hear(key.data)
                at_work = [worker for worker in self._workers if worker.task is not None]
                if not reminded and time.monotonic() - began > _AT_ONCE:
                    reminded = True
                    for worker in at_work:
                        if not worker.has_stepped:
                            _send(worker, signal.SIGKILL)
        finally:
            for worker in list(self._workers):
                if worker.task is not None:
                    _send(worker, signal.SIGKILL)
                self._forget(worker)
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(10)
            self._selector.close()


def places(configured: int | str, jobs: int, threads: int, bytes_of_one: int, devices_of_one: int = 1) -> int:
    """How many workers for so many jobs: as configured; for `auto` one for each `devices_of_one` GPUs, or for that
    many times `threads` cores, and fewer where memory has no room for so many."""
    if configured != "auto":
        return max(1, min(int(configured), jobs))
    devices_here = len(devices.visible()) or len(os.sched_getaffinity(0)) // threads
    return max(1, min(devices_here // devices_of_one, jobs, available_memory() // bytes_of_one))


def available_memory() -> int:
    """Bytes that new processes may take: of the machine, and of the control group that this one is in."""
    found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))]
    return min([*found, *_of_control_groups()])


def _of_control_groups() -> Iterator[int]:
    """Bytes that this process's control groups, of either version, still allow; files in the page cache make room."""
    lines = []
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("memory", ""):
            continue
        mounted = Path("/sys/fs/cgroup", controllers)
        limit, used = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        cached = "total_inactive_file" if controllers else "inactive_file"
        for group in {mounted / path.lstrip("/"), mounted}:  # in a container, the path is often the machine's
            with suppress(OSError, ValueError, KeyError):
                most, taken = (int((group / f"memory.{name}").read_text()) for name in (limit, used))
                kept = dict(each.split() for each in (group / "memory.stat").read_text().splitlines())
                yield max(0, most - taken + int(kept[cached]))


def _send(worker: _Worker, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        worker.process.send_signal(number)
