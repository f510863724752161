"""Images and labels in a .npz file: MNIST, as bundled, and the user's own."""

from pathlib import Path
from typing import Annotated

import numpy as np

from kdrun.config import rules
from kdrun.data.source import NAMES, existing
from kdrun.errors import InputError
from kdrun.registry import register
from kdrun.storage import arrays
from kdrun.storage.arrays import Npz

_MNIST = Path(__file__).with_name("mnist.npz")
_MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"
_ADVICE = "It must hold x_train and y_train, as numpy.savez writes them, and may hold x_test, y_test, x_val, y_val"
# what else an array may be called: MedMNIST's names among them
_ALSO = {
    "x_train": ("train_images",),
    "y_train": ("train_labels",),
    "x_test": ("test_images",),
    "y_test": ("test_labels",),
    "x_validation": ("x_val", "x_valid", "val_images"),
    "y_validation": ("y_val", "y_valid", "val_labels"),
}


class NpzSource:
    """A .npz file: headers without decompressing, arrays without pickle."""

    def __init__(self, path: Path, num_classes: int | None, class_names: tuple[str, ...] | None = None):
        self.path, self.num_classes, self.class_names = path, num_classes, class_names
        held = arrays.npz_names(path)
        called = {name: next((also for also in (name, *_ALSO[name]) if also in held), name) for name in _ALSO}
        self.names = tuple(name for name in _ALSO if called[name] in held or name in NAMES[:2])
        has_names = class_names is None and "class_names" in held
        self._called = {name: called[name] for name in self.names}
        asked_for = [*self._called.values(), *(["class_names"] if has_names else [])]
        self._file = Npz(path, asked_for, f"{_ADVICE}.")
        self.sha256 = self._file.sha256
        self._read: dict[str, np.ndarray] = {}
        for name in self.names:
            self._check(name)
        if has_names:
            self.class_names = self._own_names()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._header(name).shape
        return shape[:1] if name.startswith("y_") else shape

    def read(self, name: str) -> np.ndarray:
        found = self._array(self._called[name])
        if name.startswith("x_") and len(found) and found.max() <= 1:
            raise InputError(
                f"{self.path}: {self._called[name]} holds 0 and 1 only: pixels of uint8 are from 0 to 255. Multiply "
                "them by 255."
            )
        return found.reshape(self.shape(name)) if name.startswith("y_") else found

    def _array(self, called: str) -> np.ndarray:
        if called not in self._read:
            self._read = self._file.read()  # all at once, so that the file is looked through once
        return self._read.pop(called)

    def _header(self, name: str) -> arrays.Header:
        return self._file.headers[self._called[name]]

    def _check(self, name: str) -> None:
        """Raises InputError, with the line that helps, for what people have instead of pixels and labels."""
        called, header = self._called[name], self._header(name)
        if name.startswith("x_") and header.dtype.kind == "f":
            raise InputError(
                f"{self.path}: {called} is {header.dtype}; it must be uint8. Of pixels from 0 to 1: "
                f"{called} = (255 * {called}).round().astype('uint8')."
            )
        if name.startswith("y_") and len(header.shape) == 2 and header.shape[1] > 1:
            raise InputError(
                f"{self.path}: {called} has shape {list(header.shape)}: one-hot, as it seems. It must be one number an "
                f"image: {called} = {called}.argmax(axis=1)."
            )

    def _own_names(self) -> tuple[str, ...]:
        header = self._file.headers["class_names"]
        if len(header.shape) != 1 or header.dtype.kind != "U":
            raise InputError(
                f"{self.path}: class_names is {header.dtype} {list(header.shape)}; it must be texts, one a class."
            )
        return tuple(self._array("class_names").tolist())


@register("data", "mnist")
def mnist() -> NpzSource:
    """MNIST as bundled with kdrun; refused when its sha256 is not the published one."""
    source = NpzSource(_MNIST, num_classes=10)
    if source.sha256 != _MNIST_SHA256:
        raise InputError(
            f"The bundled MNIST file {_MNIST} is damaged: its sha256 is {source.sha256}, it must be {_MNIST_SHA256}. "
            "Install kdrun again."
        )
    return source


@register("data", "npz")
def npz(*, path: rules.Path, num_classes: Annotated[int | None, rules.integer(2, optional=True)]) -> NpzSource:
    """The user's own .npz file with the arrays x_train and y_train, and others if they are there."""
    return NpzSource(
        existing(path, "a .npz file with x_train, y_train and, if they are there, x_test, y_test"), num_classes
    )
