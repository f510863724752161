"""Files on disk: all or nothing, flushed, known by their sha256."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\..+")


def sha256(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(path: Path) -> Path:
    """Another name in the same folder, for what is written there and then renamed to `path`."""
    return path.with_name(f".{uuid.uuid4().hex}.{path.name}")


def write_with(path: Path, write: Callable[[str], None]) -> None:
    """Have `write(temporary name)` write a file in the same folder, flush it to disk, then rename it to `path`."""
    temporary = temporary_name(path)
    try:
        write(str(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        flush(path.parent)
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


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written in a folder: what has a `temporary_name`, which nobody else gives.

    Only where nobody else can be writing.
    """
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())).free


def readable(count: int) -> str:
    """Bytes as a person says them."""
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count} bytes"
