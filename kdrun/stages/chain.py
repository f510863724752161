"""Parts of a run: other stages, each begun, gone on with, or reused; beside each other where there are workers."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from kdrun import stages
from kdrun.config.schema import ONE_JOB, shared
from kdrun.errors import InputError
from kdrun.runs import directory, recording
from kdrun.runs import record as runs
from kdrun.runs.identity import fingerprint
from kdrun.runtime import devices, locks, signals, workers
from kdrun.runtime.workers import Pool, Task
from kdrun.stages import work

log = logging.getLogger(__name__)


class _Begun(NamedTuple):
    """A part that a worker has: its task, and the lock that keeps others from doing the same."""

    task: Task
    lock: FileLock | None


class Parts:
    """The parts of the run in `run_dir`, whose record remembers under `stages` where each is, so that it goes on where
    it was. With `reuse` in the config, a completed run from elsewhere is taken."""

    def __init__(self, run_dir: Path, record: dict, pool: Pool | None):
        self._run_dir, self._record, self._pool = run_dir, record, pool
        self._begun: dict[Path, _Begun] = {}

    def start(self, name: str, config: Mapping, identity: Mapping, **own: Any) -> Path:
        """Have a stage with this identity done: by a worker, or else here and now. Returns its run directory.

        `config` is that of the chain, and `own` the stage's own keys.
        """
        config = {**shared(config), **own, **ONE_JOB, "stage": identity["stage"]}
        begun = self._record.setdefault("stages", {})
        lock = self._locked(config, identity)
        with ExitStack() as unless_handed_on:
            unless_handed_on.callback(_release, lock)
            found = _good(begun.get(name), identity) or reusable(config, identity)
            if found and (reused := runs.read(found))["status"] == "completed":
                log.info("%s: reusing the completed run %s%s", name, found, runs.other_code(reused))
                begun[name] = str(found)
                return found
            run_dir = found or directory.create(config["outputs"], config["stage"])
            begun[name] = str(run_dir)
            recording.update(self._run_dir, self._record)
            threads = work.threads_beside(config, run_dir)
            if self._pool is None:
                work.load_tensorflow(config, threads)
                stages.run(config, run_dir)
                return run_dir
            words = recording.words()
            task = work.as_task("stage", name, threads, config, run_dir=str(run_dir), words=words)
            self._begun[run_dir] = _Begun(self._pool.submit(task), lock)
            unless_handed_on.pop_all()
            return run_dir

    def ask(self, config: Mapping, source: Path) -> None:
        """Have a teacher's outputs cached before its students are trained, where they are to be cached."""
        if self._pool is None:
            from kdrun.stages.cache import ask

            work.load_tensorflow(config)
            ask(config, source)
            return
        asks = work.as_task("cached", "teacher's outputs", work.threads_beside(config), config, source=str(source))
        self._wait([self._pool.submit(asks, first=True)])

    def wait(self, *run_dirs: Path) -> None:
        """Wait for these parts, or for all. Raises the first error of those that failed, when all have ended."""
        self._wait([begun.task for run_dir, begun in self._begun.items() if not run_dirs or run_dir in run_dirs])

    def have_ended(self, *run_dirs: Path) -> bool:
        """Whether none of these is with a worker, or waits for one."""
        return all(begun.task.has_ended for run_dir, begun in self._begun.items() if run_dir in run_dirs)

    def release(self) -> None:
        """Let others begin what is not done here."""
        for begun in self._begun.values():
            _release(begun.lock)

    def _wait(self, tasks: Sequence[Task]) -> None:
        while not all(task.has_ended for task in tasks):
            self._attend()
        for task in tasks:
            if task.error:
                raise task.error

    def _attend(self) -> None:
        if self._pool is None:
            signals.check()
            time.sleep(0.2)
            return
        self._pool.attend()
        for begun in self._begun.values():
            if begun.task.has_ended:
                _release(begun.lock)

    def _locked(self, config: Mapping, identity: Mapping) -> FileLock | None:
        """A lock on what another process may be training just now: it is trained once, and then reused."""
        if not config["reuse"]:
            return None
        folder = Path(config["outputs"]) / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{fingerprint(identity)[:32]}.lock")
        locks.held(lock, f"another kdrun is training this {identity['stage']} already; waiting for it", self._attend)
        return lock


@contextmanager
def parts_of(config: Mapping, run_dir: Path, record: dict, jobs: int) -> Iterator[Parts]:
    """The parts of a run, of which at most `jobs` could be done beside each other; leaving it ends all workers."""
    threads = work.threads_beside(config, run_dir)
    of_one = devices.count(config["devices"])
    size = workers.places(config["workers"], jobs, threads, bytes_of(config), of_one)
    if size == 1:
        yield Parts(run_dir, record, None)
        return
    with Pool(size, work.WORKER) as pool:
        parts = Parts(run_dir, record, pool)
        try:
            yield parts
        finally:
            parts.release()


def bytes_of(config: Mapping) -> int:
    """About how much memory a process takes that trains a network of the config: TensorFlow, and the activations of a
    deep one, a thousand numbers a pixel of a batch."""
    roles = {"teacher": "teacher", "student": "student", "distill": "student"}
    pixels = max(config[part]["batch_size"] * config[role]["image_size"] ** 2 for part, role in roles.items())
    return 2**30 + 4 * 1000 * pixels


def reusable(config: Mapping, identity: Mapping) -> Path | None:
    """A completed run with this identity, if such may be taken."""
    return runs.find(config["outputs"], identity) if config["reuse"] else None


def _release(lock: FileLock | None) -> None:
    if lock is not None and lock.is_locked:
        lock.release()


def _good(begun: str | None, identity: Mapping) -> Path | None:
    """The run directory in which a pipeline that goes on has begun a stage, if it can be used."""
    if begun is None:
        return None
    try:
        record = runs.read(begun)
    except InputError as error:
        log.warning("%s Beginning that stage anew", error)
        return None
    if record.get("fingerprint") != fingerprint(identity):
        log.warning("%s depends on something else than it did. Beginning that stage anew", begun)
        return None
    if record["status"] == "completed" and (changed := runs.damaged(Path(begun), record)):
        log.warning("%s: %s is not what run.json says. Beginning that stage anew", begun, ", ".join(changed))
        return None
    return Path(begun)
