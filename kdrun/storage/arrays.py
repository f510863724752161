"""Arrays in files that somebody else may have written: .npz and .npy, of which not a word is believed.

No pickle, no memory taken on a header's word, nothing that is waited for. No TensorFlow in here.
"""

import hashlib
import io
import math
import tokenize
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from kdrun.errors import InputError
from kdrun.storage import files

DEFLATE_RATIO = 1032  # the most that deflate can make of a byte; headers that claim more lie
# what zipfile, gzip, zlib and numpy raise for files that are damaged, encrypted or compressed in an unknown way
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error, SyntaxError),
    *(TypeError, tokenize.TokenError, OverflowError, MemoryError),
)
_LONGEST_HEADER = 10_000  # bytes; numpy's own limit
_AT_ONCE = 1 << 20  # bytes
_MAGIC = np.lib.format.MAGIC_PREFIX
_KINDS = "biufcmMSU"  # of dtypes: neither objects nor records


class Header(NamedTuple):
    """What a .npy says of its array, and where its numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    column_order: bool
    offset: int

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """Some arrays of a .npz file: their headers at once, without decompressing; the arrays when they are asked for.

    What was checked is what is read: the members whose headers these are, of a file with the same sha256. Raises
    InputError, of one line that begins with `key` and the path and ends with `advice`, for a file that is not a
    regular one, that holds something else than members ending in .npy, or one twice, that lacks one of `names`, is
    damaged, claims more than it can hold, or holds Python objects.
    """

    def __init__(self, path: Path, names: Sequence[str], advice: str, key: str = ""):
        self.path, self._names, self._advice, self._key = path, names, advice, key
        try:
            with files.open_regular(path) as file:
                self.sha256 = _digest(file)
                if file.read(len(_MAGIC)) == _MAGIC:
                    raise ValueError("it is a single array, as numpy.save writes it")
                with zipfile.ZipFile(file) as archive:
                    self._members = self._checked_members(archive)
                    self.headers = {name: self._header(archive, name) for name in names}
        except UNREADABLE as error:
            raise self._refused(f"not a readable .npz file ({_said(error)})") from error

    def read(self) -> dict[str, np.ndarray]:
        """The arrays, by name. Raises InputError for damage, and where the file was changed since it was looked at."""
        found, name = {}, self._names[0]
        try:
            with files.open_regular(self.path) as file:
                try:
                    with zipfile.ZipFile(file) as archive:
                        for name in self._names:
                            found[name] = self._array(archive, name)
                finally:  # damage in a file that was swapped is the other file's
                    if _digest(file) != self.sha256:
                        raise self._refused("it was changed while kdrun was reading it")
        except UNREADABLE as error:
            raise self._refused(f"{name} cannot be read ({_said(error)}). The file is damaged or truncated") from error
        return found

    def _checked_members(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        """The archive's members by array; each once, and nothing beside them that a reader could take for one."""
        members = archive.infolist()
        for name, count in Counter(member.filename for member in members).items():
            if not name.endswith(".npy"):
                raise self._refused(f"it holds {name!r}, which is no .npy")
            if count > 1:
                raise self._refused(f"it holds {name!r} {count} times")
        found = {member.filename.removesuffix(".npy"): member for member in members}
        if missing := [name for name in self._names if name not in found]:
            absent = ", ".join(f"{name}.npy" for name in missing)
            raise self._refused(f"it has no {', '.join(missing)}: there is no array {absent} in it")
        return found

    def _header(self, archive: zipfile.ZipFile, name: str) -> Header:
        member = self._members[name]
        with archive.open(member) as file:
            header = _header(file)
        if header.dtype.kind not in _KINDS:
            what = "Python objects" if header.dtype.hasobject else "records"
            raise self._refused(f"{name} holds {what}, which cannot be read; it must hold numbers")
        held = _most(self.path, member)
        if header.size > held:
            raise self._refused(f"{name} claims {header.size} bytes and the file holds {held}. It is damaged")
        return header

    def _array(self, archive: zipfile.ZipFile, name: str) -> np.ndarray:
        member, header = self._members[name], self.headers[name]
        with archive.open(member) as file:
            if _header(file) != header:
                raise ValueError("its header is another one now")
        with archive.open(member) as file:  # anew: after a seek, its checksum is not looked at any more
            file.read(header.offset)
            payload = np.empty(header.size, np.uint8)  # memory is taken as it is filled
            filled = 0
            while filled < header.size:
                block = file.read(min(_AT_ONCE, header.size - filled))
                if not block:
                    raise EOFError(f"its header claims {header.size} bytes, and there are {filled}")
                payload[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
                filled += len(block)
            if file.read(1):  # to its end, where the checksum is looked at
                raise ValueError(f"there are more than the {header.size} bytes that its header claims")
        return _shaped(payload, header)

    def _refused(self, problem: str) -> InputError:
        return InputError(f"{self._key}{self.path}: {problem}. {self._advice}")


def npz_names(path: Path) -> set[str]:
    """The names of a .npz file's arrays; none of what is no such file, of which Npz says what is wrong."""
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    except UNREADABLE:
        return set()


def float32(array: np.ndarray) -> np.ndarray:
    """Floats as float32. Raises ValueError where they are not all finite numbers, before or after."""
    if not np.isfinite(array).all():
        raise ValueError("not all finite numbers")
    with np.errstate(over="ignore"):
        cast = array.astype(np.float32)
    if not np.isfinite(cast).all():
        most = np.abs(array[~np.isfinite(cast)]).max()
        raise ValueError(f"{array.dtype} with numbers beyond float32, up to {most:g}")
    return cast


def mapped(path: Path) -> np.ndarray:
    """The array in a .npy file as a read-only memory map. Raises one of UNREADABLE for anything else."""
    with files.open_regular(path) as file:
        header = _header(file)
        size = file.seek(0, io.SEEK_END)
        if header.dtype.kind not in _KINDS or header.offset + header.size != size:
            raise ValueError(f"its header claims {header.size} bytes of {header.dtype} in a file of {size}")
        order: Literal["F", "C"] = "F" if header.column_order else "C"
        return np.memmap(file, header.dtype, "r", header.offset, header.shape, order)


def _header(file: IO[bytes]) -> Header:
    """The header at the beginning of a .npy; not more is read than one can be long."""
    start = io.BytesIO(file.read(len(_MAGIC) + 6 + _LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"a .npy of the unknown version {version[0]}.{version[1]}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy guesses at damaged headers, and says so in lines of its own
        shape, column_order, dtype = read(start)
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{shape} is no shape")
    return Header(shape, dtype, column_order, start.tell())


def _shaped(payload: np.ndarray, header: Header) -> np.ndarray:
    """Bytes as the array that a header says they are."""
    if not header.size:
        return np.zeros(header.shape, header.dtype)
    return payload.view(header.dtype).reshape(header.shape, order="F" if header.column_order else "C")


def _most(path: Path, member: zipfile.ZipInfo) -> int:
    """Bytes that an archive's member can hold at most, whatever the archive says of it."""
    packed = min(member.compress_size, path.stat().st_size)
    unpacked = {zipfile.ZIP_STORED: packed, zipfile.ZIP_DEFLATED: DEFLATE_RATIO * packed}
    if member.compress_type not in unpacked:
        raise ValueError(f"{member.filename} is compressed in an unusual way")
    return min(member.file_size, unpacked[member.compress_type])


def _digest(file: io.BufferedReader) -> str:
    """The sha256 of an open file, which is then at its beginning."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


def _said(error: BaseException) -> str:
    """An error in one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return " ".join(said.split())
