"""Datasets: a name and a path become arrays of images and labels, checked before anything is trained on them."""

import gzip
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from kdrun.data.batches import SUBSET
from kdrun.errors import InputError
from kdrun.registry import get, register
from kdrun.runs.record import ALL_IMAGES
from kdrun.storage import files
from kdrun.storage.arrays import DEFLATE_RATIO, UNREADABLE, Npz

_MNIST = Path(__file__).with_name("mnist.npz")
_MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_KEYS = tuple(_IDX_FILES)


class Split(NamedTuple):
    """Images, uint8 [n, height, width, channels], and labels, int32 [n]."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Three splits, the number of classes, and the sha256 of the files that they were read from."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    sha256: str


class Shapes(NamedTuple):
    """What can be said of a dataset from its headers alone: array shapes (n first) of training and test images."""

    train: tuple[int, ...]
    test: tuple[int, ...]


@register("data", "mnist")
def mnist(data: Mapping) -> "_Npz":
    """MNIST as bundled with kdrun; refused when its sha256 is not the published one."""
    source = _Npz(_MNIST, num_classes=10)
    if source.sha256 != _MNIST_SHA256:
        raise InputError(
            f"The bundled MNIST file {_MNIST} is damaged: its sha256 is {source.sha256}, it must be {_MNIST_SHA256}. "
            "Install kdrun again."
        )
    return source


@register("data", "npz")
def npz(data: Mapping) -> "_Npz":
    """The user's own .npz file with the arrays x_train, y_train, x_test and y_test."""
    return _Npz(
        _existing(data["path"], "data.path", "a .npz file with x_train, y_train, x_test, y_test"), data["num_classes"]
    )


@register("data", "fashion_mnist")
def fashion_mnist(data: Mapping) -> "_Idx":
    """Fashion-MNIST from four IDX files, by default where Debian's package puts them."""
    hint = "the folder of its four IDX files (Debian: apt-get install dataset-fashion-mnist)"
    return _Idx(_existing(data["path"], "data.path", hint))


def shapes(data: Mapping) -> Shapes:
    """Shapes of the configured dataset from its files' headers. Raises InputError where a file cannot be used."""
    source = _source(_key(data))
    train, test = source.shape("x_train"), source.shape("x_test")
    for name, shape in (("x_train", train), ("x_test", test)):
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape:
            raise InputError(
                f"{source.path}: {name} has shape {list(shape)}; it must be [n, height, width] or "
                "[n, height, width, 1 or 3], and not empty."
            )
        labels = name.replace("x_", "y_")
        if source.shape(labels) != shape[:1]:
            raise InputError(
                f"{source.path}: {labels} has shape {list(source.shape(labels))}; {name} has {shape[0]} images, so it "
                f"must be [{shape[0]}]."
            )
    if train[1:] != test[1:]:
        raise InputError(
            f"{source.path}: x_train's images are {list(train[1:])} and x_test's {list(test[1:])}; they must be of "
            "one size."
        )
    return Shapes(train, test)


def fingerprint(data: Mapping) -> str:
    """The sha256 of the configured dataset's files."""
    return _source(_key(data)).sha256


def load(data: Mapping, seed: int = 0) -> Dataset:
    """The configured dataset, split: the first `validation_size` training images are the validation set.

    With `train_on_validation` they are in the training split, too. Of that, `include_classes`, `exclude_classes` and
    `train_fraction` choose images: all of some classes, and of each of these the same fraction, drawn by `seed`.
    Raises InputError where a file is missing, damaged, or holds something else than images and labels. Arrays are
    kept for the process, so that a sweep's jobs read them once; they are read-only.
    """
    x_train, y_train, x_test, y_test, num_classes = _arrays(_key(data))
    held_out, used = data["validation_size"], data["train_size"]
    end = None if used is None else held_out + used
    first = 0 if data.get("train_on_validation") else held_out
    train = Split(x_train[first:end], y_train[first:end])
    subset = [data.get(key, default) for key, default in ALL_IMAGES.items()]
    if subset != list(ALL_IMAGES.values()):
        chosen = _chosen(train.labels, *subset, seed)
        train = Split(train.images[chosen], train.labels[chosen])
    return Dataset(
        train,
        Split(x_train[:held_out], y_train[:held_out]),
        Split(x_test[: data["test_size"]], y_test[: data["test_size"]]),
        num_classes,
        fingerprint(data),
    )


def _chosen(labels: np.ndarray, include, exclude, fraction: float, seed: int) -> np.ndarray:
    """Indices, in order, of the training images that the students see."""
    wanted = range(int(labels.max()) + 1) if include is None else include
    random, chosen = np.random.default_rng([seed, 0, SUBSET]), []
    for label in sorted(set(wanted) - set(exclude)):
        of_class = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(of_class)))
        chosen.append(random.permutation(of_class)[:count])
    return np.sort(np.concatenate(chosen or [np.zeros(0, np.int64)]))


def order(dataset: Dataset) -> str:
    """The sha256 of all images and labels in their order: what logits in a file must be made for."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for array in split:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _key(data: Mapping) -> tuple:
    return data["name"], data.get("path"), data.get("num_classes")


@lru_cache(maxsize=2)
def _source(key: tuple):
    name, path, num_classes = key
    try:
        source = get("data", name)
    except KeyError as error:  # the record of somebody else's run may name any
        raise InputError(f"data={name}: there is no such dataset here.") from error
    return source({"path": path, "num_classes": num_classes})


@lru_cache(maxsize=1)
def _arrays(key: tuple) -> tuple:
    source = _source(key)
    shapes(dict(zip(("name", "path", "num_classes"), key, strict=True)))
    arrays = {name: source.read(name) for name in _KEYS}
    for name, array in arrays.items():
        images = name.startswith("x_")
        fits, said = (array.dtype == np.uint8, "uint8") if images else (array.dtype.kind in "iu", "integers")
        if not fits:
            raise InputError(f"{source.path}: {name} is {array.dtype}; it must be {said}.")
    num_classes = source.num_classes or int(arrays["y_train"].max()) + 1
    for name in ("y_train", "y_test"):
        low, high = int(arrays[name].min()), int(arrays[name].max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"{source.path}: {name} holds labels from {low} to {high}; with {num_classes} classes they must be "
                f"from 0 to {num_classes - 1}."
            )
    if num_classes < 2:
        raise InputError(f"{source.path}: y_train holds one class only; at least 2 are needed.")
    images = [a if a.ndim == 4 else a[..., np.newaxis] for a in (arrays["x_train"], arrays["x_test"])]
    labels = [arrays[name].astype(np.int32) for name in ("y_train", "y_test")]
    for array in (*images, *labels):
        array.flags.writeable = False
    return images[0], labels[0], images[1], labels[1], num_classes


def _existing(path: str, key: str, what: str) -> Path:
    if path is None or not Path(path).exists():
        raise InputError(f"{key}: {path} does not exist. Set {key} to {what}.")
    return Path(path)


class _Npz:
    """A .npz file: headers without decompressing, arrays without pickle."""

    def __init__(self, path: Path, num_classes: int | None):
        self.path, self.num_classes = path, num_classes
        self._file = Npz(path, _KEYS, f"It must hold {', '.join(_KEYS)}, as numpy.savez writes them.")
        self.sha256 = self._file.sha256
        self._read: dict[str, np.ndarray] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.headers[name].shape

    def read(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read = self._file.read()  # all at once, so that the file is looked through once
        return self._read.pop(name)


class _Idx:
    """A folder of four IDX files (magic, sizes, bytes), each with or without .gz."""

    num_classes = 10

    def __init__(self, path: Path):
        self.path = path
        self._files = {name: self._find(file) for name, file in _IDX_FILES.items()}
        together = hashlib.sha256()
        self._sums = {name: self._digest(name, together) for name in _IDX_FILES}
        self.sha256 = together.hexdigest()

    def _find(self, file: str) -> Path:
        for candidate in (self.path / file, self.path / f"{file}.gz"):
            if candidate.is_file():
                return candidate
        raise InputError(f"data.path: {self.path} holds no {file} or {file}.gz. It must hold the four IDX files.")

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
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

    def _header(self, file: BinaryIO, name: str) -> tuple[int, ...]:
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
