"""A run directory: made, written, described by its run.json, found again.

No TensorFlow in here: runs are looked up before it is known whether anything has to be computed.
"""

import glob
import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kdrun import registry
from kdrun.errors import InputError
from kdrun.runs import code
from kdrun.runs import run_json as records
from kdrun.runtime import signals as stopping
from kdrun.storage import files, manifest

log = logging.getLogger(__name__)

# Raise when the same config would no longer give the same result: then no run from before is reused for it. Such runs
# can still be read, compared, evaluated and teach.
FORMAT = 5
TRAINING = ("teacher", "student", "distill")  # stages that train one network
NETWORKS = (*TRAINING, "adjust_bias")  # stages that leave one which can teach, and be evaluated
CHAINS = ("pipeline", "generations", "specialists")  # stages that consist of such
HEARTBEAT_SECONDS = 15
_DEPTH = 4  # folders below a given one in which runs are looked for
# the keys of data that choose among the students' training images, as they are where all are taken
ALL_IMAGES = {"include_classes": None, "exclude_classes": [], "train_fraction": 1.0}
# keys of the config that only distilling depends on
DISTILLING = ("temperature", "temperature_end", "alpha", "alpha_end", "alpha_warmup_epochs", "annealing", "objective")


def create(outputs: str, stage: str) -> Path:
    """A new, empty run directory outputs/<stage>/<timestamp>; a collision gets a suffix."""
    base = Path(outputs) / stage / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        run_dir = base if attempt == 1 else base.with_name(f"{base.name}_{attempt}")
        if _made(run_dir):
            return run_dir
    raise InputError(f"{base}: a thousand runs were started in this second. Wait a moment.")


def seen(config: Mapping, stage: str) -> dict:
    """The config with its data as a stage's network sees them: with the teacher's or the student's augmentation, and
    for the teacher all training images. Of stages that train several networks, the config as it is."""
    if stage not in (*TRAINING, "cache", "specialist"):
        return dict(config)
    role = role_of(stage)
    data = config["data"] | {key: config[role][key] for key in ("augment", "train_on_validation")}
    if role == "teacher":
        data |= ALL_IMAGES
    return {**config, "data": data}


def identity(config: Mapping, stage: str, dataset_sha256: str, teacher_weights: Sequence[str] = ()) -> dict:
    """Everything that the result of a training stage depends on, as plain values.

    `teacher_weights` are sums of the weights, or of the file of logits, of each who teaches.
    """
    role = role_of(stage)
    depends = {
        "format": FORMAT,
        "stage": stage,
        "model": config[role]["model"],
        "seed": config["teacher"]["seed"] if stage == "teacher" else config["seed"],
        "epochs": config[stage]["epochs"],
        "patience": config[stage]["patience"],
        "batch_size": config[stage]["batch_size"],
        "evaluation_batch_size": config["evaluation_batch_size"],
        "precision": config["precision"],
        "optimizer": config["optimizer"],
        "data": {key: value for key, value in seen(config, stage)["data"].items() if key != "path"},
        "dataset_sha256": dataset_sha256,
        "code": _code(config, stage),
    }
    if stage == "distill":
        depends |= {key: config[key] for key in DISTILLING}
        if module := config["objective"].get("module"):
            depends["objective"] = {**config["objective"], "module": files.sha256(Path(module))}
        depends["teachers"] = {key: config["teacher"][key] for key in ("combine", "weights", "shuffle")}
        depends["teacher_weights"] = list(teacher_weights)
        depends["teacher_inference_batch_size"] = config["teacher"]["inference_batch_size"]
        depends["classifier"] = config["student"]["classifier"]
        depends |= {key: config["distill"][key] for key in ("mixup", "peers")}
    if stage == "specialist":
        depends |= {"classes": config["classes"], "generalist_weights": list(teacher_weights)}
    return depends


def _code(config: Mapping, stage: str) -> dict[str, str]:
    """Hashes of the modules that the configured net, optimizer, data source and objectives are in.

    An objective of the user's own is known by its file, which the identity has beside this.
    """
    used = [("model", config[role_of(stage)]["model"]["name"]), ("optimizer", config["optimizer"]["name"])]
    used.append(("data", config["data"]["name"]))
    objective = config["objective"] if stage == "distill" else {}
    used += [("objective", name) for name, keys in objective.items() if isinstance(keys, Mapping)]
    found = {f"{group}/{name}": registry.file_of(group, name) for group, name in used}
    of_a_file = "module" in objective
    return {
        name: code.of_module(path)
        for name, path in found.items()
        if path
        and not (of_a_file and name.startswith("objective/") and not path.is_relative_to(Path(__file__).parent.parent))
    }


def role_of(stage: str) -> str:
    """Whose model and data a stage has. A specialist begins as a teacher."""
    return "teacher" if stage in ("teacher", "specialist") else "student"


def chain_identity(config: Mapping, dataset_sha256: str) -> dict:
    """Everything that the result of a stage of several parts depends on: theirs, which teacher is given, how many."""
    return {
        "stage": config["stage"],
        "stages": [identity(config, stage, dataset_sha256) for stage in TRAINING],
        "teacher": [config["teacher"][key] for key in ("run", "logits")],
        **{key: config.get(key) for key in ("generations", "run", "clusters", "specialist")},
    }


def fingerprint(depends: Mapping) -> str:
    """sha256 of an identity."""
    return manifest.digest(depends)


def read(run_dir: str | Path) -> dict:
    """The run.json of a run directory. Raises InputError when there is none or it cannot be read.

    A run whose process is gone without a word is `interrupted`, whatever its run.json says.
    """
    path = Path(run_dir) / "run.json"
    try:
        record = manifest.unsealed(json.loads(files.read(path)))
    except OSError as error:
        raise InputError(f"{run_dir} is not a run directory: {path.name} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError, manifest.Damaged) as error:
        raise InputError(f"{path} is damaged, or not the record of a kdrun run: {error}.") from error
    if wrong := records.wrong(record, (*NETWORKS, "specialist")):
        raise InputError(f"{path} is damaged, or not the record of a kdrun run: {wrong}.")
    if record["status"] == "running" and not _is_written(Path(run_dir), record):
        record["status"] = "interrupted"
    return record


def settled(run_dir: str | Path) -> dict:
    """The run.json of a run directory, whose status can be relied on: where a lock cannot tell whether a process is
    still writing it, its heartbeat is watched for three intervals. Raises what `read` does; a signal ends it."""
    record = read(run_dir)
    if record["status"] != "running" or _is_locked(Path(run_dir), record):
        return record
    beat, seconds = record.get("heartbeat"), 3 * HEARTBEAT_SECONDS
    log.warning(
        "%s: its last sign of life, from %s, is of %s. Watching for up to %g s whether another one comes",
        *(run_dir, writer(record), beat, seconds),
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stopping.check()
        time.sleep(min(0.2, HEARTBEAT_SECONDS / 10))
        record = read(run_dir)
        if record["status"] != "running" or record.get("heartbeat") != beat:
            return record
    log.warning("%s: no sign of life came: whoever wrote it is gone", run_dir)
    _silent.add(_sign_of_life(Path(run_dir), record))
    return read(run_dir)


def writer(record: Mapping) -> str:
    """Who writes a run, or did so last."""
    host = record.get("host")
    return f"process {record.get('pid')} on {host.get('name') if isinstance(host, Mapping) else 'another machine'}"


_silent: set[tuple[str, str]] = set()  # signs of life that `settled` has seen not to be followed by another one


def _sign_of_life(run_dir: Path, record: Mapping) -> tuple[str, str]:
    return str(run_dir.resolve()), str(record.get("heartbeat"))


def _is_written(run_dir: Path, record: Mapping) -> bool:
    """Whether the process that began a run is still there, as far as a look can tell: see `settled`."""
    locked = _is_locked(run_dir, record)
    if locked is not None:
        return locked
    try:
        silent = (datetime.now(UTC) - datetime.fromisoformat(record.get("heartbeat"))).total_seconds()
    except (TypeError, ValueError):
        return False
    return silent < 10 * HEARTBEAT_SECONDS and _sign_of_life(run_dir, record) not in _silent


def _is_locked(run_dir: Path, record: Mapping) -> bool | None:
    """Whether a process holds a run's lock; None where that says nothing: for another host's, or without permission."""
    host = record.get("host")
    if not isinstance(host, dict) or host.get("name") != platform.node():
        return None
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that we cannot write to
        return None


def found(places: str | Sequence[str]) -> list[Path]:
    """The run directories in `places`: run directories, folders of them, or glob patterns; one, or a list.

    Raises InputError where there is none at all.
    """
    places = [places] if isinstance(places, str) else places
    run_dirs = list(dict.fromkeys(run_dir for place in places for run_dir in _below(place)))
    if not run_dirs:
        raise InputError(f"runs: nothing of kdrun's is in {', '.join(places)}. Give run directories.")
    return run_dirs


def _below(place: str) -> Iterator[Path]:
    for match in sorted(glob.glob(place)) or [place]:
        top = Path(match)
        for folder, folders, names in os.walk(top):
            if "run.json" in names:
                yield Path(folder)
                folders.clear()  # what is in a run directory is its own
            elif len(Path(folder).relative_to(top).parts) >= _DEPTH:
                folders.clear()
            folders.sort()


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


def interrupted(outputs: str, depends: Mapping) -> Path | None:
    """The newest run with this identity that was interrupted, or failed; None when there is none.

    Raises InputError where there is only one that another process is writing.
    """
    wanted, found, writing = fingerprint(depends), [], None
    for path in [*Path(outputs).glob(f"{depends['stage']}/*/run.json"), *Path(outputs).glob("sweeps/*/*/run.json")]:
        with suppress(InputError):
            record = read(path.parent)
            if record["status"] in ("interrupted", "failed", "running") and record.get("fingerprint") == wanted:
                found.append((str(record.get("started")), path.parent))
    for _, run_dir in sorted(found, reverse=True):
        record = settled(run_dir)
        if record["status"] in ("interrupted", "failed"):
            return run_dir
        if record["status"] == "running":
            writing = writing or f"{run_dir} is being written by another kdrun ({writer(record)})"
    if writing:
        raise InputError(
            f"resume=auto: {writing}, and is of this config. Wait for it, or leave resume=auto out to begin another."
        )
    return None


def find(outputs: str, depends: Mapping) -> Path | None:
    """The newest completed run with this identity whose weights are what its record says; None when there is none."""
    wanted = fingerprint(depends)
    for run_dir, record in completed(outputs, depends["stage"]):
        if record.get("fingerprint") == wanted and not damaged(run_dir, record):
            return run_dir
    return None


def other_code(record: Mapping) -> str:
    """Where a run was made by other code of kdrun than this: which, for a line of the log; else nothing."""
    made_by = record.get("kdrun")
    if made_by is None:
        return ", made by an older kdrun"
    if made_by["code_sha256"] == code.of_package():
        return ""
    version, commit = made_by["version"], record.get("git_commit")
    return f", made by other code of kdrun ({version}, commit {commit}); of what it used none has changed"


def made_by(record: Mapping) -> str:
    """Which kdrun made a run: its version and commit, where these are known; else the format of its numbers."""
    if "kdrun" in record:
        commit = (record.get("git_commit") or "").partition("-")
        return " ".join([record["kdrun"]["version"], commit[0][:7] + "".join(commit[1:])]).strip()
    return f"format {(record.get('identity') or {}).get('format', 'unknown')}"


def damaged(run_dir: Path, record: Mapping) -> list[str]:
    """Which of a completed run's files are missing or are not byte for byte what its record says."""
    return [
        name
        for name, digest in record["files"].items()
        if not (run_dir / name).is_file() or files.sha256(run_dir / name) != digest
    ]


def check_unused(run_dir: Path) -> None:
    """Raises InputError when the directory holds a run: a run is never overwritten."""
    if (run_dir / "run.json").exists():
        raise InputError(f"{run_dir} holds a run already, which is never overwritten. Choose another directory.")


def check_below(key: str, folder: Path, outputs: str) -> None:
    """Raises InputError when a folder that the user chose with `key` is not below the outputs folder."""
    if not folder.resolve().is_relative_to(Path(outputs).resolve()):
        raise InputError(f"{key}: {folder} is not below outputs={outputs}; runs are written nowhere else. Set outputs.")


def check_writable(key: str, folder: Path) -> None:
    """Try whether a folder can be made in `folder`, the value of `key`, and leave everything as it was.

    Raises InputError where it cannot.
    """
    probe = folder / uuid.uuid4().hex
    made = []
    with stopping.undisturbed():
        try:
            made = [parent for parent in (probe, *probe.parents) if not parent.is_dir()]
            _made(probe)
        except OSError as error:
            raise files.no_room(error, folder) or InputError(
                f"{key}: {folder} cannot be written to ({error.strerror}: {error.filename}). "
                f"Set {key} to a folder of yours."
            ) from error
        finally:
            for parent in made:
                with suppress(OSError):  # somebody else's run has begun in there meanwhile
                    parent.rmdir()


def _made(folder: Path) -> bool:
    """Make a folder and its parents; False where it was there. Others may be making and removing the parents, too."""
    for _ in range(100):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            return False
        except FileNotFoundError:  # a parent was removed just now
            continue
        return True
    folder.mkdir(parents=True)
    return True
