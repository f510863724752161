"""A run directory: made, written, described by its run.json, found again.

No TensorFlow in here: runs are looked up before it is known whether anything has to be computed.
"""

import hashlib
import json
import logging
import os
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from kdrun.errors import Diverged, InputError, KdrunError, Stopped

log = logging.getLogger(__name__)

_FORMAT = 2  # raise when the same config would no longer give the same result
TRAINING = ("teacher", "student", "distill")  # stages that train one network
_PACKAGES = ("tensorflow", "tf-keras", "adabelief-tf", "numpy", "hydra-core")


def create(outputs: str, stage: str) -> Path:
    """A new, empty run directory outputs/<stage>/<timestamp>; a collision gets a suffix."""
    base = Path(outputs) / stage / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        run_dir = base if attempt == 1 else base.with_name(f"{base.name}_{attempt}")
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        return run_dir
    raise InputError(f"{base}: a thousand runs were started in this second. Wait a moment.")


def identity(config: Mapping, stage: str, dataset_sha256: str, teacher_weights: str | None = None) -> dict:
    """Everything that the result of a training stage depends on, as plain values."""
    role = "teacher" if stage == "teacher" else "student"
    depends = {
        "format": _FORMAT,
        "stage": stage,
        "model": config[role]["model"],
        "seed": config["teacher"]["seed"] if stage == "teacher" else config["seed"],
        "epochs": config[stage]["epochs"],
        "batch_size": config[stage]["batch_size"],
        "evaluation_batch_size": config["evaluation_batch_size"],
        "precision": config["precision"],
        "optimizer": config["optimizer"],
        "data": {key: value for key, value in config["data"].items() if key != "path"},
        "dataset_sha256": dataset_sha256,
    }
    if stage == "distill":
        depends |= {key: config[key] for key in ("temperature", "alpha", "objective")}
        depends["teacher_weights"] = teacher_weights
        depends["teacher_inference_batch_size"] = config["teacher"]["inference_batch_size"]
    return depends


def fingerprint(depends: Mapping) -> str:
    """sha256 of an identity."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@contextmanager
def recording(run_dir: Path, config: Mapping, **facts) -> Iterator[dict]:
    """Keep run.json while a stage runs: `running` at first, then how it ended.

    Yields the record; what the stage puts under `results` is written when it ends. The log goes to kdrun.log. Raises
    InputError when the directory holds a run, or is another process's.
    """
    check_unused(run_dir)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{run_dir} is being written by another kdrun. Choose another directory.") from error
    handler = logging.FileHandler(run_dir / "kdrun.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("kdrun").addHandler(handler)
    record = {
        "stage": config["stage"],
        "status": "running",
        **facts,
        **_environment(),
        "started": _now(),
        "config": config,
    }
    saved = run_dir / ".hydra" / "config.yaml"
    if not saved.exists():  # a stage of a pipeline: Hydra has written the pipeline's
        write_with(saved, lambda name: OmegaConf.save(config, name))
    write_json(run_dir / "run.json", record)
    try:
        yield record
        record["status"] = "completed"
    except BaseException as error:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        record["status"] = "interrupted" if stopped else "diverged" if isinstance(error, Diverged) else "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        trace = None if isinstance(error, KdrunError) else (type(error), error, error.__traceback__)
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, record["error"], (), trace))
        raise
    finally:
        record["finished"] = _now()
        logging.getLogger("kdrun").removeHandler(handler)
        handler.close()
        write_json(run_dir / "run.json", record)
        lock.release()


def read(run_dir: str | Path) -> dict:
    """The run.json of a run directory. Raises InputError when there is none or it cannot be read."""
    path = Path(run_dir) / "run.json"
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{run_dir} is not a run directory: {path.name} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    needed = {"stage", "status", "config"}
    if isinstance(record, dict) and record.get("status") == "completed":
        needed |= {"finished"} | (
            {"files", "num_classes", "dataset_sha256"} if record.get("stage") in TRAINING else set()
        )
    if not isinstance(record, dict) or not needed <= record.keys() or not _is_config(record["config"]):
        raise InputError(f"{path} is not the record of a kdrun run: it lacks some of {', '.join(sorted(needed))}.")
    return record


def _is_config(config) -> bool:
    return isinstance(config, dict) and isinstance(config.get("data"), dict)


def completed(outputs: str, stage: str) -> list[tuple[Path, dict]]:
    """Completed runs of a stage below `outputs`, newest first, with their records."""
    found = []
    for path in [*Path(outputs).glob(f"{stage}/*/run.json"), *Path(outputs).glob("sweeps/*/*/run.json")]:
        try:
            record = read(path.parent)
        except InputError:  # somebody else's, or damaged: not a run that can be used
            continue
        if record["stage"] == stage and record["status"] == "completed":
            found.append((path.parent, record))
    return sorted(found, key=lambda run: run[1]["finished"], reverse=True)


def find(outputs: str, depends: Mapping) -> Path | None:
    """The newest completed run with this identity whose weights are what its record says; None when there is none."""
    wanted = fingerprint(depends)
    for run_dir, record in completed(outputs, depends["stage"]):
        if record.get("fingerprint") == wanted and not damaged(run_dir, record):
            return run_dir
    return None


def damaged(run_dir: Path, record: Mapping) -> list[str]:
    """Which of a completed run's files are missing or are not byte for byte what its record says."""
    files = record["files"]
    return [
        name for name, digest in files.items() if not (run_dir / name).is_file() or sha256(run_dir / name) != digest
    ]


def check_unused(run_dir: Path) -> None:
    """Raises InputError when the directory holds a run: a run is never overwritten."""
    if (run_dir / "run.json").exists():
        raise InputError(f"{run_dir} holds a run already, which is never overwritten. Choose another directory.")


def check_writable(key: str, folder: Path) -> None:
    """Try whether a folder can be made in `folder`, the value of `key`, and leave everything as it was.

    Raises InputError where it cannot.
    """
    probe = folder / uuid.uuid4().hex
    made = []
    try:
        for parent in reversed([probe, *probe.parents]):
            if not parent.is_dir():
                parent.mkdir()
                made.append(parent)
    except OSError as error:
        raise InputError(
            f"{key}: {folder} cannot be written to ({error.strerror}: {error.filename}). "
            f"Set {key} to a folder of yours."
        ) from error
    finally:
        for parent in reversed(made):
            with suppress(OSError):  # somebody else's run has begun in there meanwhile
                parent.rmdir()


def sha256(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_with(path: Path, write: Callable[[str], None]) -> None:
    """Have `write(temporary name)` write a file in the same folder, flush it to disk, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        write(str(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Have a folder's list of files on disk: what was renamed in it stays so after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value) -> None:
    """Write a value as JSON, all or nothing."""
    write_with(path, lambda name: Path(name).write_text(json.dumps(value, indent=2, allow_nan=False) + "\n"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _environment() -> dict:
    package = Path(__file__).parent
    git = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        # only where kdrun itself is tracked: an installed copy inside somebody's repository has no commit
        tracked = (
            subprocess.run([*git[:3], "ls-files", "--error-unmatch", "runs.py"], capture_output=True).returncode == 0
        )
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if tracked else None
    except OSError:
        commit = None
    return {
        "packages": {name: version(name) for name in _PACKAGES},
        "git_commit": commit,
        "host": {
            "name": platform.node(),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "pid": os.getpid(),
    }
