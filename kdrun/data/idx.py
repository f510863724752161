"""Images and labels in IDX files, as MNIST and Fashion-MNIST are published."""

import gzip
import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kdrun.config import rules
from kdrun.data.source import existing
from kdrun.errors import InputError
from kdrun.registry import register
from kdrun.storage import files
from kdrun.storage.arrays import DEFLATE_RATIO, UNREADABLE

_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


class IdxSource:
    """A folder of four IDX files (magic, sizes, bytes), each with or without .gz."""

    num_classes = 10

    def __init__(self, path: Path):
        self.path = path
        self._files = {name: self._find(file) for name, file in _FILES.items()}
        together = hashlib.sha256()
        self._sums = {name: self._digest(name, together) for name in _FILES}
        self.sha256 = together.hexdigest()

    def _find(self, file: str) -> Path:
        for candidate in (self.path / file, self.path / f"{file}.gz"):
            if candidate.is_file():
                return candidate
        raise InputError(f"data.path: {self.path} holds no {file} or {file}.gz. It must hold the four IDX files.")

    @contextmanager
    def _open(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A file's content, uncompressed. Raises InputError where it cannot be read."""
        path = self._files[name]
        try:
            with files.open_regular(path) as file:
                yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        except UNREADABLE as error:
            raise self._unreadable(name, error) from error

    def _digest(self, name: str, also=None) -> str:
        """A file's sha256; its bytes go into the digest `also`, too."""
        digest = hashlib.sha256()
        try:
            with files.open_regular(self._files[name]) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    if also:
                        also.update(block)
        except OSError as error:
            raise self._unreadable(name, error) from error
        return digest.hexdigest()

    def _unreadable(self, name: str, error: Exception) -> InputError:
        said = " ".join(str(error).split())
        return InputError(f"{self._files[name]}: cannot be read ({said}). The file is damaged or truncated.")

    def shape(self, name: str) -> tuple[int, ...]:
        with self._open(name) as file:
            return self._header(file, name)

    def _header(self, file: io.BufferedIOBase, name: str) -> tuple[int, ...]:
        dimensions = 3 if name.startswith("x_") else 1
        head = file.read(4 + 4 * dimensions)
        if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, 8, dimensions]):
            raise InputError(f"{self._files[name]}: not an IDX file of unsigned bytes with {dimensions} dimension(s).")
        shape = tuple(int(n) for n in np.frombuffer(head, ">u4", offset=4))
        path = self._files[name]
        most = path.stat().st_size * (DEFLATE_RATIO if path.suffix == ".gz" else 1)
        if math.prod(shape) > most:
            raise InputError(f"{path}: its header says {list(shape)}, for which the file is too small. It is damaged.")
        return shape

    def read(self, name: str) -> np.ndarray:
        with self._open(name) as file:
            shape = self._header(file, name)
            expected = math.prod(shape)
            payload = file.read(expected + 1)  # what is longer is damaged, too, and may be much longer
        if self._digest(name) != self._sums[name]:
            raise InputError(f"{self._files[name]}: it was changed while kdrun was reading it. Give a file that stays.")
        if len(payload) != expected:
            more = " or more" if len(payload) > expected else ""
            raise InputError(
                f"{self._files[name]}: {len(payload)} bytes of data{more}, its header says {expected}. It is damaged."
            )
        return np.frombuffer(bytearray(payload), np.uint8).reshape(shape)


@register("data", "fashion_mnist")
def fashion_mnist(*, path: rules.Path) -> IdxSource:
    """Fashion-MNIST from four IDX files, by default where Debian's package puts them."""
    hint = "the folder of its four IDX files (Debian: apt-get install dataset-fashion-mnist)"
    return IdxSource(existing(path, hint))
