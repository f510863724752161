"""CIFAR-10 and CIFAR-100 in their binary versions, or as .npz: never as pickle."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from kdrun.config import rules
from kdrun.data.npz import NpzSource
from kdrun.data.source import NAMES, existing
from kdrun.errors import InputError
from kdrun.registry import register
from kdrun.storage import files

_PIXELS = 3 * 32 * 32
_MOST = 1 << 30  # bytes of a file; the largest has 153 MB
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN_10 = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


class CifarSource:
    """A folder of binary files: rows of labels, of which one is taken, and 3,072 pixels, red, green, blue."""

    names = NAMES

    def __init__(self, path: Path, parts: Mapping[str, Sequence[str]], labels: tuple[int, int], num_classes: int):
        """`labels` are how many a row has, and which is taken."""
        (count, self._column), self.path, self.num_classes = labels, path, num_classes
        self._row = count + _PIXELS
        self._content = {part: b"".join(self._file(name) for name in of_part) for part, of_part in parts.items()}
        self.class_names: tuple[str, ...] | None = None
        self.sha256 = hashlib.sha256(b"".join(self._content.values())).hexdigest()

    def shape(self, name: str) -> tuple[int, ...]:
        count = len(self._content[name[2:]]) // self._row
        return (count, 32, 32, 3) if name.startswith("x_") else (count,)

    def read(self, name: str) -> np.ndarray:
        rows = np.frombuffer(self._content[name[2:]], np.uint8).reshape(-1, self._row)
        if name.startswith("y_"):
            return rows[:, self._column].copy()
        return np.ascontiguousarray(rows[:, -_PIXELS:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))

    def _file(self, name: str) -> bytes:
        try:
            content = files.read(self.path / name, _MOST)
        except OSError as error:
            raise InputError(
                f"data.path: {self.path / name} cannot be read ({error.strerror}). Give the folder of CIFAR's binary "
                "version, unpacked, or a .npz of it."
            ) from error
        if not content or len(content) % self._row:
            raise InputError(
                f"{self.path / name}: {len(content)} bytes are no rows of {self._row}. It is damaged, or not of "
                "CIFAR's binary version."
            )
        return content


def _class_names(path: Path) -> tuple[str, ...] | None:
    """The classes' names, of which a file beside the rows has one a line; None where it is not there."""
    if not path.is_file():
        return None
    try:
        lines = files.read(path, 1 << 16).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text. Remove or mend it.") from error
    return tuple(line.strip() for line in lines if line.strip())


_WHERE = "the folder of CIFAR's binary version, or a .npz with x_train, y_train, x_test, y_test"


@register("data", "cifar10")
def cifar10(*, path: rules.Path) -> CifarSource | NpzSource:
    """CIFAR-10: data_batch_1.bin to data_batch_5.bin and test_batch.bin, or a .npz with its arrays."""
    found = existing(path, _WHERE)
    if found.is_file():
        return NpzSource(found, 10, CIFAR10)
    source = CifarSource(found, {"train": _TRAIN_10, "test": ["test_batch.bin"]}, (1, 0), 10)
    source.class_names = _class_names(found / "batches.meta.txt") or CIFAR10
    return source


@register("data", "cifar100")
def cifar100(*, path: rules.Path, labels: Annotated[str, rules.one_of("fine", "coarse")]) -> CifarSource | NpzSource:
    """CIFAR-100: train.bin and test.bin, with its 100 fine or its 20 coarse labels, or a .npz with its arrays."""
    found, count = existing(path, _WHERE), 100 if labels == "fine" else 20
    if found.is_file():
        return NpzSource(found, count)
    parts = {"train": ["train.bin"], "test": ["test.bin"]}
    source = CifarSource(found, parts, (2, 1 if labels == "fine" else 0), count)
    source.class_names = _class_names(found / f"{labels}_label_names.txt")
    return source
