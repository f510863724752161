"""Files on disk: all or nothing, flushed, known by their sha256."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

from kdrun.errors import NoRoom

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\..+")
# a list of numbers, or of short texts, as json.dumps indents it: a line for each of them; no text holds an end of line
_SHORT_ITEMS = re.compile(r'\[\n((?:\s+(?:[-\w][^\n]*|"[^\n]{0,40}",?)\n)+)\s+\]')


def open_regular(path: str | Path) -> io.BufferedReader:
    """A regular file, or a link to one, open for reading.

    Raises OSError for anything else: a FIFO would be waited for, /dev/zero has no end.
    """
    return open(path, "rb", opener=_regular)


def _regular(path: str, flags: int) -> int:
    _check_regular(path, os.stat(path))  # before it is opened, which alone does something to some devices
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # it may be a FIFO by now
    try:
        _check_regular(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder, not a file" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise OSError(errno.EINVAL, kind, str(path))


def special(folder: Path) -> Path | None:
    """What below a folder is neither a regular file nor a folder, a training state's own files left out: written to, it
    would be waited for, or the file that it is a link to changed."""
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith("state-")]
        for name in names:
            if not stat.S_ISREG(os.lstat(os.path.join(top, name)).st_mode):
                return Path(top, name)
    return None


def read(path: str | Path, most: int = 1 << 26) -> bytes:
    """A regular file of at most `most` bytes. Raises OSError for anything else."""
    with open_regular(path) as file:
        # asked for all of `most`, Python would make room for it, whatever the file's size
        content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {readable(most)}", str(path))
    return content


def sha256(path: Path) -> str:
    """sha256 of a regular file. Raises OSError for anything else."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(path: Path) -> Path:
    """Another name in the same folder, for what is written there and then renamed to `path`."""
    return path.with_name(f".{uuid.uuid4().hex}.{path.name}")


def write_with(path: Path, write: Callable[[str], object]) -> None:
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


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes, all or nothing."""
    write_with(path, lambda name: Path(name).write_bytes(content))


def flush(folder: Path) -> None:
    """Have a folder's list of files on disk: what was renamed in it stays so after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value) -> None:
    """Write a value as JSON, all or nothing: indented, with a list of numbers or of short texts on one line."""
    text = json.dumps(value, indent=2, allow_nan=False)
    text = _SHORT_ITEMS.sub(lambda found: f"[{' '.join(line.strip() for line in found[1].splitlines())}]", text)
    write_with(path, lambda name: Path(name).write_text(text + "\n"))


def reserve(folder: Path, size: int) -> None:
    """Raises OSError where a folder's disk has no room for so many bytes in a handful of files.

    For those who say in lines of their own, or not at all, that a disk is full.
    """
    places = [temporary_name(folder / str(number)) for number in range(6)]
    try:
        for place in places:
            with place.open("wb") as file:
                if place is places[0]:
                    os.posix_fallocate(file.fileno(), 0, size)
    finally:
        for place in places:
            place.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written in a folder: what has a `temporary_name`, which nobody else gives.

    Only where nobody else can be writing.
    """
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def no_room(error: BaseException, folder: Path, needed: int | None = None) -> NoRoom | None:
    """What to raise instead of an error that says that a folder's disk is full, or out of inodes; None for another one.

    `needed` are the bytes that would do, where that is known. TensorFlow's errors have no number, only its text.
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if getattr(error, "errno", None) not in full and not any(os.strerror(number) in str(error) for number in full):
        return None
    disk = os.statvfs(_existing(folder))
    reason = "the disk is full, or a limit on the size of files is reached"
    if disk.f_files and not disk.f_favail:
        reason = "its disk can hold no more files (no inodes are free)"
    said = f" and about {readable(needed)} are needed" if needed else ""
    return NoRoom(f"{folder} cannot be written: {reason}. {readable(free(folder))} are free{said}.")


def _existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def readable(count: int) -> str:
    """Bytes as a person says them."""
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count} bytes"
