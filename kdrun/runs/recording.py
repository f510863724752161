"""The record of a run while it is written: run.json, its lock and heartbeat, kdrun.log, and how the run ended.

No TensorFlow in here.
"""

import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from kdrun import __version__
from kdrun.config.schema import flatten
from kdrun.errors import Diverged, InputError, KdrunError, Stopped, Unfinished
from kdrun.runs import code, directory
from kdrun.runs import record as runs
from kdrun.runs.identity import fingerprint
from kdrun.runtime import devices, rendezvous, tensorflow
from kdrun.storage import files, manifest

log = logging.getLogger(__name__)

FOLDERS = (".hydra", "checkpoints", "predictions")  # of a run directory, that files are written into
_WRITING = threading.Lock()  # of run.json: the heartbeat is another thread's
_PACKAGES = ("tensorflow", "tf-keras", "adabelief-tf", "numpy", "hydra-core")


@contextmanager
def recording(run_dir: Path, config: Mapping, identity: Mapping | None = None, **facts) -> Iterator[dict]:
    """Keep run.json while a stage runs: `running` with a heartbeat at first, then how it ended.

    Yields the record; what the stage puts under `results` is written when it ends. The log goes to kdrun.log.
    `identity` is all that the result depends on. With a `resume` in the config, a run that is in the directory already
    goes on. Raises InputError when there is one otherwise, when it depends on something else, or is another process's;
    Diverged when a number of the results is not finite; NoRoom when the disk is full, KdrunError when the directory was
    deleted meanwhile. Of the tasks of a cluster only the chief records, the others have a log alone.
    """
    if rendezvous.follower():
        with _logged(run_dir):
            yield {}
        return
    if config.get("resume") is not None and (run_dir / "run.json").exists():
        before = runs.settled(run_dir)
        if before["status"] == "running":
            raise InputError(f"{run_dir} is being written by another kdrun ({runs.writer(before)}). Wait for it.")
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=1)  # a moment: somebody may just be looking whether it is held
    except Timeout as error:
        raise InputError(f"{run_dir} is being written by another kdrun. Choose another directory.") from error
    except OSError as error:
        raise _advised(explained(error, run_dir), run_dir, identity) from error
    try:
        try:
            record = _begun(run_dir, config, identity, facts)
            update(run_dir, record)
        except OSError as error:
            raise _advised(explained(error, run_dir), run_dir, identity) from error
        try:
            with _beating(run_dir), _logged(run_dir):
                yield record
                _check_finite(record.get("results"))
            record["status"] = "completed"
        except BaseException as error:  # whatever ends a run is recorded, and goes on up
            stopped = isinstance(error, Stopped | KeyboardInterrupt)
            record["status"] = "interrupted" if stopped else "diverged" if isinstance(error, Diverged) else "failed"
            record["error"] = f"{type(error).__name__}: {error}"
            problem = _advised(explained(error, run_dir, record), run_dir, identity)
            if problem is error:
                raise
            raise problem from error
        finally:
            record["finished"] = _now()
            try:
                update(run_dir, record)
            except OSError as error:  # disk full or folder gone: `running` without a process says enough, unless
                if record["status"] == "completed":
                    raise _advised(explained(error, run_dir, record), run_dir, identity) from error
    finally:
        lock.release()


def failed(run_dir: Path, config: Mapping, error: Exception) -> None:
    """Record a run that failed before it began."""
    with suppress(type(error)), recording(run_dir, {**config, "resume": "auto"}):
        raise error


def _begun(run_dir: Path, config: Mapping, identity: Mapping | None, facts: Mapping) -> dict:
    """The record of a run that begins, or goes on."""
    before = {}
    if config.get("resume") is None:
        directory.check_unused(run_dir)
    elif (run_dir / "run.json").exists():
        before = runs.read(run_dir)
        if odd := files.special(run_dir):
            raise InputError(f"{run_dir} cannot go on: {odd} in it is no regular file. Start a new run.")
        if before["status"] == "completed":  # by another process, while this one was starting
            raise InputError(f"{run_dir} was completed meanwhile; there is nothing left to do.")
        began = before.get("identity") or {}
        changed = [
            key
            for key, value in (identity or {}).items()
            if began.get(key) != value and not (key == "epochs" and key in began)
        ]
        if changed:
            raise InputError(
                f"{run_dir} cannot go on: {', '.join(changed)} changed since it began. Put it back, or start a new run."
            )
        if identity and "epochs" in identity:
            identity = _grown(began, identity)
        for folder in (run_dir, *(run_dir / name for name in FOLDERS)):
            files.remove_leftovers(folder)
    environment = _environment()
    given = config.get(
        "threads", "auto"
    )  # of a run whose parts others do, which has no TensorFlow itself: one, for auto
    known = before.get("threads") or facts.get("threads") or tensorflow.threads_in_use()
    environment["threads"] = known or (1 if given == "auto" else given)
    environment["devices"] = before.get("devices") or devices.count(config.get("devices", 1))
    member = rendezvous.current()
    environment["machines"] = member.cluster.size if member else 1
    for package, found in environment["packages"].items() if before else ():
        if found != before.get("packages", {}).get(package):
            log.warning("going on with another %s, %s: bits may differ from an uninterrupted run's", package, found)
    record = {
        **{key: value for key, value in before.items() if key not in ("error", "finished")},
        "stage": config["stage"],
        "status": "running",
        **facts,
        **({"fingerprint": fingerprint(identity), "identity": identity} if identity else {}),
        **environment,
        "command": before.get("command") or _command(),
        "started": before.get("started") or _now(),
        "config": config,
    }
    if before:
        record["resumed"] = [*before.get("resumed", []), _now()]
    saved = run_dir / ".hydra" / "config.yaml"
    if not saved.exists():  # a stage of a pipeline: Hydra has written the pipeline's
        saved.parent.mkdir(exist_ok=True)
        files.write_with(saved, lambda name: OmegaConf.save(config, name))
    return record


def _grown(began: Mapping, identity: Mapping) -> Mapping:
    """The identity of a run that goes on, perhaps for more epochs than it began with."""
    before, now, schedule = began["epochs"], identity["epochs"], identity["optimizer"]["schedule"]
    annealed = [key for key, value in flatten(identity) if key.endswith("_end") and value is not None]
    grown = began.get("grown_from", [])
    if before != now and schedule != "cosine" and not annealed:
        rate = "a constant learning rate" if schedule == "constant" else "learning rates that do not depend on it"
        log.info("%d epochs instead of %d: at %s all is as if begun with %d", now, before, rate, now)
    elif before != now and schedule != "cosine":
        grown = [*grown, before]
        log.warning(
            "%d epochs instead of %d: what ends at %s is stretched over all %d from here on, and the result is not "
            "that of a run begun with %d",
            *(now, before, ", ".join(annealed), now, now),
        )
    elif before != now:
        grown = [*grown, before]  # no longer the run that it would have been from its beginning
        log.warning(
            "%d epochs instead of %d: the %s schedule is stretched over all %d from here on, so the learning rate "
            "jumps up, and the result is not that of a run begun with %d",
            *(now, before, schedule, now, now),
        )
    return {**identity, "grown_from": grown} if grown else identity


def update(run_dir: Path, record: Mapping) -> None:
    """Write a running stage's record as it is now; numbers that are not finite, which JSON has not, become null."""
    with _WRITING:
        files.write_json(run_dir / "run.json", manifest.sealed(_finite({**record, "heartbeat": _now()})))


def _finite(value):
    """Plain values with null instead of what is not a finite number."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_finite(value, name: str = "results") -> None:
    """Raises Diverged for results that hold a number that is not finite."""
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_finite(item, f"{name}.{key}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Diverged(f"The results diverged: {name} is {value}. Try precision=float32, or train with other keys.")


@contextmanager
def _beating(run_dir: Path) -> Iterator[None]:
    """Renew the heartbeat in run.json every now and then."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(runs.HEARTBEAT_SECONDS):
            with _WRITING, suppress(OSError, ValueError, manifest.Damaged):  # a full disk is for the stage to notice
                record = manifest.unsealed(json.loads((run_dir / "run.json").read_text()))
                files.write_json(run_dir / "run.json", manifest.sealed({**record, "heartbeat": _now()}))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _LogFile(logging.FileHandler):
    """kdrun.log; a full disk is for the stage to notice, not for every line of the log."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def _logged(run_dir: Path) -> Iterator[None]:
    """kdrun's log goes to kdrun.log, and at last the error that ended the run."""
    handler = _LogFile(run_dir / "kdrun.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("kdrun").addHandler(handler)
    try:
        yield
    except BaseException as error:  # logged, and goes on up
        trace = None if isinstance(error, KdrunError) else (type(error), error, error.__traceback__)
        said = f"{type(error).__name__}: {error}"
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, said, (), trace))
        raise
    finally:
        logging.getLogger("kdrun").removeHandler(handler)
        with suppress(OSError):  # its last lines find no room
            handler.close()


def explained(error: BaseException, run_dir: Path, record: Mapping | None = None) -> BaseException:
    """A full disk, or a directory that is gone, in words; any other error as it is."""
    if isinstance(error, KdrunError) or not isinstance(error, Exception):
        return error
    # TensorFlow may have made the folder again, for a file that it was about to write
    if not run_dir.is_dir() or (record and not (run_dir / "run.json").exists()):
        return KdrunError(f"{run_dir} is gone: somebody deleted it while kdrun was writing it. Start the run again.")
    return files.no_room(error, run_dir, (record or {}).get("room_needed")) or error


def _advised(error: BaseException, run_dir: Path, identity: Mapping | None) -> BaseException:
    """An error that says how to go on, where that can be done: with a run of parts rather than with one of them."""
    if isinstance(error, Unfinished) and identity and (run_dir / "run.json").exists():
        error.run_dir = run_dir
    return error


_words: ContextVar[Sequence[str] | None] = ContextVar("the command line's overrides", default=None)


@contextmanager
def commanded(words: Sequence[str] | None) -> Iterator[None]:
    """While inside, runs are recorded as of a command with these overrides."""
    own = words and [word for word in words if not word.startswith("hydra")]
    token = _words.set(own)
    try:
        yield
    finally:
        _words.reset(token)


def words() -> list[str] | None:
    """The overrides of the command that runs are recorded as of; None where it is not known."""
    found = _words.get()
    return None if found is None else list(found)


def _command() -> str | None:
    """The command that this job is of, without -m: a sweep's job has values of its own."""
    words = _words.get()
    return None if words is None else shlex.join(["kdrun", *words])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _environment() -> dict:
    package = Path(__file__).parent.parent
    git = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        # only where kdrun itself is tracked: an installed copy inside somebody's repository has no commit
        tracked = (
            subprocess.run([*git[:3], "ls-files", "--error-unmatch", "registry.py"], capture_output=True).returncode
            == 0
        )
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if tracked else None
    except OSError:
        commit = None
    return {
        "kdrun": {"version": __version__, "code_sha256": code.of_package()},
        "packages": {name: version(name) for name in _PACKAGES},
        "git_commit": commit,
        "host": {
            "name": platform.node(),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "gpus": devices.visible(),
            "python": platform.python_version(),
        },
        "pid": os.getpid(),
    }
