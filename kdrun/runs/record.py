"""The record of a run, its run.json: read, and whether it can be relied on; runs found by what they depend on.

No TensorFlow in here: runs are looked up before it is known whether anything has to be computed.
"""

import json
import logging
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdrun import registry
from kdrun.errors import InputError
from kdrun.runs import code, run_json
from kdrun.runs.identity import fingerprint
from kdrun.runtime import signals
from kdrun.storage import files, manifest

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15


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
    if wrong := run_json.wrong(record, has_network(record)):
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
        signals.check()
        time.sleep(min(0.2, HEARTBEAT_SECONDS / 10))
        record = read(run_dir)
        if record["status"] != "running" or record.get("heartbeat") != beat:
            return record
    log.warning("%s: no sign of life came: whoever wrote it is gone", run_dir)
    _silent.add(_sign_of_life(Path(run_dir), record))
    return read(run_dir)


def writer(record: Mapping) -> str:
    """The process that writes a run, or did so last."""
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
    heartbeat: Any = record.get("heartbeat")  # perhaps no time at all
    try:
        silent = (datetime.now(UTC) - datetime.fromisoformat(heartbeat)).total_seconds()
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


def stage_of(record: Mapping) -> registry.Stage | None:
    """The stage of a record; None for one that there is not here."""
    name = record.get("stage")
    return registry.get("stage", name) if isinstance(name, str) and registry.has("stage", name) else None


def kind(record: Mapping) -> str:
    """What a run's network is to a comparison; empty where it is nothing."""
    stage = stage_of(record)
    return stage.trains if stage and stage.trains and stage.leaves_network else ""


def check_leaves_network(record: Mapping, said: str) -> None:
    """Raises InputError, which begins with `said`, for a run that leaves no network to teach or to be measured."""
    stage = stage_of(record)
    if not (stage and stage.leaves_network):
        leaving = [name for name in registry.names("stage") if registry.get("stage", name).leaves_network]
        raise InputError(f"{said} is a {record['stage']} run. Give one of stage {', '.join(leaving)}.")


def has_network(record: object) -> bool:
    """Whether a record is of a stage that trains a network, or leaves one."""
    stage = stage_of(record) if isinstance(record, Mapping) else None
    return bool(stage and (stage.trains or stage.leaves_network))


def interrupted(outputs: str, identity: Mapping) -> Path | None:
    """The newest run with this identity that was interrupted, or failed; None when there is none.

    Raises InputError where there is only one that another process is writing.
    """
    wanted, found, writing = fingerprint(identity), [], None
    for path in [*Path(outputs).glob(f"{identity['stage']}/*/run.json"), *Path(outputs).glob("sweeps/*/*/run.json")]:
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


def find(outputs: str, identity: Mapping) -> Path | None:
    """The newest completed run with this identity whose weights are what its record says; None when there is none."""
    wanted = fingerprint(identity)
    for run_dir, record in completed(outputs, identity["stage"]):
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
