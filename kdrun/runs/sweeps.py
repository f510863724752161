"""A sweep's jobs: where each one is written, what is done of them, and one job's failure kept from the others.

A job's run directory is outputs/sweeps/<sweep>/<its values>-<hash>: the same values are the same directory, so that the
same command again skips what is completed and goes on with the rest. No TensorFlow in here.
"""

import logging
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kdrun.config.schema import LATER_OF_ALL, flatten
from kdrun.errors import InputError, KdrunError, Stopped
from kdrun.runs import record as runs
from kdrun.runs import recording
from kdrun.runs.identity import fingerprint
from kdrun.runtime import signals
from kdrun.runtime.live import readable
from kdrun.storage import manifest

log = logging.getLogger(__name__)

_NOT_THE_JOBS = (
    "outputs",
    "cache_dir",
    "data.store",
    "data.transfer_store",
    "resume",
    "sweep",
    "reuse",
    "compare.margin",
    "plugins",
    "workers",
    "print",
    "tracker.mlflow.uri",
    "tracker.mlflow.wait_seconds",
    "tracker.wandb.mode",
    "tracker.wandb.folder",
    "tracker.wandb.wait_seconds",
    "tracker.trackio.folder",
    "tracker.trackio.wait_seconds",
)
_ASIDE = re.compile(r"\.damaged(-\d+)?$")  # see manifest.set_aside; a job's own name ends with a hash
_NOTES = ".jobs"  # folder of a sweep, while it runs
_LONGEST = 80  # characters of readable values in a folder's name


class Sweep(NamedTuple):
    """What a sweep's jobs have in common: its folder, the keys that differ, and, where known, how many there are; the
    command that they are of, and how many workers do them; 0: this process does, or those of another launcher."""

    folder: str
    keys: list[str]
    total: int | None
    command: str = ""
    workers: int = 0


def job_dir(sweep: Sweep, values: Mapping, identity: Mapping | None, overrides: Sequence[str]) -> Path:
    """The run directory of a job with this config, whose result depends on `identity`, too: on code, data and teachers.

    Neither overrides' order nor how a number is written matters. A folder's name can be given on a command line as it
    is.
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    leaves = {key: _number(value) for key, value in flatten(values)}
    given |= {key: leaves[key] for key in given.keys() & leaves.keys()}
    shown = [f"{key.split('.')[-1].split('@')[-1]}-{given[key]}" for key in sorted(sweep.keys) if key in given]
    name = re.sub(r"[^\w.+-]+", "_", "__".join(shown), flags=re.ASCII)[:_LONGEST].lstrip(".") or "job"
    as_before = LATER_OF_ALL.items()  # and is no part of a job's name, which is what it was
    kept = {key: value for key, value in leaves.items() if key not in _NOT_THE_JOBS and (key, value) not in as_before}
    if identity:
        kept["identity"] = fingerprint(identity)
    return Path(sweep.folder) / f"{name}-{manifest.digest(kept)[:8]}"


def run(sweep: Sweep, number: int, run_dir: Path, config: Mapping, work: Callable[[], dict]) -> dict | None:
    """Do the work of a command's job with that number, counted from 1, unless it is done, and return its results; None
    when it failed, which is recorded.

    `work` is to go on with a run that is in `run_dir`. A signal ends the whole sweep: SystemExit.
    """
    _note(sweep, run_dir)
    found = done(sweep)
    said = f"job {number}{'' if sweep.total is None else f' of {sweep.total}'}: {run_dir.name}"
    log.info("%s  |  %d done, %d failed%s", said, found["completed"], found["failed"], _time_left(sweep, number))
    damage = _damage(run_dir)
    if damage == []:
        record = runs.read(run_dir)
        log.info("%s is completed already%s", run_dir, runs.other_code(record))
        return record.get("results")
    started = time.monotonic()
    try:
        signals.check()  # a signal that came between two jobs
        if damage:
            aside = manifest.set_aside(run_dir)
            changed = ", ".join(damage)
            log.warning(
                "%s: %s is not what run.json says. Set aside as %s; doing the job again", run_dir, changed, aside
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        return work()
    except (Stopped, KeyboardInterrupt) as error:
        with suppress(OSError):  # it holds what can be gone on with
            run_dir.rmdir()
        log.info("%s", error if isinstance(error, Stopped | signals.AtOnce) else "Stopped by SIGINT.")
        raise SystemExit(getattr(error, "exit_code", 130)) from error
    except Exception as error:  # noqa: BLE001 - whatever it is, the other jobs are not to suffer from it
        log.error("%s failed: %s", run_dir.name, one_line(error))
        if not (run_dir / "run.json").exists():
            recording.failed(run_dir, config, error)
        return None
    finally:
        _seconds.append(time.monotonic() - started)


_seconds: list[float] = []  # that this process's jobs took


def new_command() -> str:
    """A name for the jobs of one command: the folder may hold those of others."""
    return uuid.uuid4().hex


def _note(sweep: Sweep, run_dir: Path) -> None:
    """Note that a job is of the command, whatever process does it."""
    noted = Path(sweep.folder) / _NOTES / sweep.command
    noted.mkdir(parents=True, exist_ok=True)
    (noted / run_dir.name).touch()


def of_command(sweep: Sweep) -> set[str]:
    """The names of the run directories of the jobs that the command has come to; the notes of them are taken away."""
    noted = Path(sweep.folder) / _NOTES / sweep.command
    found = {path.name for path in noted.glob("*")}
    shutil.rmtree(noted, ignore_errors=True)
    with suppress(OSError):  # another command is at work in this folder
        noted.parent.rmdir()
    return found


def done(sweep: Sweep) -> Counter[str]:
    """How many jobs there are by status; what is neither completed, running nor interrupted counts as failed."""
    counts: Counter[str] = Counter()
    for record in records(sweep).values():
        status = record if isinstance(record, str) else record["status"]
        counts[status if status in ("completed", "running", "interrupted") else "failed"] += 1
    return counts


def records(sweep: Sweep) -> dict[Path, dict | str]:
    """Every job's record, by its run directory; where it cannot be read, the reason. What was set aside is no job's."""
    found: dict[Path, dict | str] = {}
    for path in sorted(Path(sweep.folder).glob("*/run.json")):
        if _ASIDE.search(path.parent.name):
            continue
        try:
            found[path.parent] = runs.read(path.parent)
        except InputError as error:
            found[path.parent] = str(error)
    return found


def one_line(error: BaseException | str) -> str:
    """An error in one line; of kdrun's own, its text alone."""
    said = str(error) if isinstance(error, KdrunError | str) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())


def _number(value):
    """A value; 10.0 as 10, which is the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _damage(run_dir: Path) -> list[str] | None:
    """Which files of a completed job are not what its record says; None for a job that is not completed."""
    try:
        record = runs.read(run_dir)
    except InputError:
        return None
    return runs.damaged(run_dir, {"files": {}, **record}) if record["status"] == "completed" else None


def _time_left(sweep: Sweep, number: int) -> str:
    if sweep.total is None or not _seconds:
        return ""
    left = (sweep.total - number + 1) * sum(_seconds) / len(_seconds) / max(1, sweep.workers)
    return f", about {readable(left)} left"
