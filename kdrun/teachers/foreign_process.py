"""The process in which another tool's network runs: given images, it gives back its outputs, and nothing else."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdrun.errors import InputError
from kdrun.runtime import child
from kdrun.teachers import kinds, pixels
from kdrun.teachers.foreign_network import Network


class _Loaded(NamedTuple):
    network: Network
    shown: pixels.Input
    batch_size: int


_loaded: list[_Loaded] = []


def main() -> None:
    """Answer the parent, until it is gone."""
    child.serve(_answer)


def _answer(told: Mapping[str, Any], payload: bytes) -> tuple[dict, bytes]:
    if "path" in told:
        return _load(told), b""
    (loaded,) = _loaded
    if "shape" not in told:
        return {"features": {name: feature.shape for name, feature in loaded.network.features().items()}}, b""
    images = np.frombuffer(payload, np.uint8).reshape(told["shape"])
    call = loaded.network.features()[told["feature"]].call if told["feature"] else loaded.network.call
    starts = range(0, len(images), loaded.batch_size)
    found = [_outputs(images[start : start + loaded.batch_size], loaded, call) for start in starts]
    outputs = np.concatenate(found)
    return {"shape": outputs.shape}, outputs.tobytes()


def _load(told: Mapping[str, Any]) -> dict:
    runtime: Any = import_module(kinds.FOREIGN[told["kind"]].module)
    runtime.start()
    child.limit_memory(told["memory"])
    network: Network = runtime.load(Path(told["path"]))
    network = network._replace(features=cache(network.features))
    shown = pixels.resolved(told["input"], network.declared)
    _loaded[:] = [_Loaded(network, shown, network.declared.shape[0] or told["batch_size"])]
    return {"input": str(shown)}


def _outputs(images: np.ndarray, loaded: _Loaded, call: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """float32 [n, ...]: of a batch that is always of one size, filled up with its first image, so that what is said of
    an image does not depend on how many come with it."""
    count, batch_size = len(images), loaded.batch_size
    if count < batch_size:
        images = np.concatenate([images, np.repeat(images[:1], batch_size - count, axis=0)])
    found = np.asarray(call(pixels.prepare(images, loaded.shown)))
    as_it_should = found.ndim == 2 or call is not loaded.network.call
    if not as_it_should or len(found) != batch_size or found.dtype.kind != "f":
        raise InputError(
            f"of {batch_size} images it gives {found.dtype} {list(found.shape)}; it must be floats of [{batch_size}, "
            "classes]."
        )
    return found[:count].astype(np.float32)
