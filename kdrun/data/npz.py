"""Images and labels in a .npz file: MNIST, as bundled, and the user's own."""

from pathlib import Path
from typing import Annotated

import numpy as np

from kdrun.config import rules
from kdrun.data.source import NAMES, existing
from kdrun.errors import InputError
from kdrun.registry import register
from kdrun.storage.arrays import Npz

_MNIST = Path(__file__).with_name("mnist.npz")
_MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"


class NpzSource:
    """A .npz file: headers without decompressing, arrays without pickle."""

    def __init__(self, path: Path, num_classes: int | None):
        self.path, self.num_classes = path, num_classes
        self._file = Npz(path, NAMES, f"It must hold {', '.join(NAMES)}, as numpy.savez writes them.")
        self.sha256 = self._file.sha256
        self._read: dict[str, np.ndarray] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.headers[name].shape

    def read(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read = self._file.read()  # all at once, so that the file is looked through once
        return self._read.pop(name)


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
    """The user's own .npz file with the arrays x_train, y_train, x_test and y_test."""
    return NpzSource(existing(path, "a .npz file with x_train, y_train, x_test, y_test"), num_classes)
