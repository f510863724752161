"""The process in which another tool's network runs: given images, it gives back its outputs, and nothing else."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import InputError
from kdrun.runtime import child
from kdrun.teachers import kinds, pixels

_loaded: list[tuple[pixels.Input, Callable[[np.ndarray], np.ndarray], int]] = []


def main() -> None:
    """Answer the parent, until it is gone."""
    child.serve(_answer)


def _answer(told: Mapping[str, Any], payload: bytes) -> tuple[dict, bytes]:
    if "path" in told:
        return _load(told), b""
    images = np.frombuffer(payload, np.uint8).reshape(told["shape"])
    *_, batch_size = _loaded[0]
    parts = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    found = np.concatenate([_outputs(part, *_loaded[0]) for part in parts])
    return {"shape": found.shape}, found.tobytes()


def _load(told: Mapping[str, Any]) -> dict:
    runtime: Any = import_module(kinds.FOREIGN[told["kind"]].module)
    runtime.start()
    child.limit_memory(told["memory"])
    declared, call = runtime.load(Path(told["path"]))
    shown = pixels.resolved(told["input"], declared)
    _loaded[:] = [(shown, call, declared.shape[0] or told["batch_size"])]
    return {"input": str(shown)}


def _outputs(images: np.ndarray, shown: pixels.Input, call: Callable, batch_size: int) -> np.ndarray:
    """float32 [n, outputs]: of a batch that is always of one size, filled up with its first image, so that what is said
    of an image does not depend on how many come with it."""
    count = len(images)
    if count < batch_size:
        images = np.concatenate([images, np.repeat(images[:1], batch_size - count, axis=0)])
    found = np.asarray(call(pixels.prepare(images, shown)))
    if found.ndim != 2 or len(found) != batch_size or found.dtype.kind != "f":
        raise InputError(
            f"of {batch_size} images it gives {found.dtype} {list(found.shape)}; it must be floats of [{batch_size}, "
            "classes]."
        )
    return found[:count].astype(np.float32)
