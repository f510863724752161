"""The process in which another tool's network runs, or one that was exported: given images, it gives back its outputs,
and nothing else; and says how long it takes."""

import time
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

_CALLS = (10, 500)  # that are timed, at least and at most


class _Loaded(NamedTuple):
    network: Network
    shown: pixels.Input | None
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
    if "seconds" in told:
        return _timed(images, loaded, told["seconds"]), b""
    call = loaded.network.features()[told["feature"]].call if told["feature"] else loaded.network.call
    starts = range(0, len(images), loaded.batch_size)
    found = [_outputs(images[start : start + loaded.batch_size], loaded, call) for start in starts]
    outputs = np.concatenate(found)
    return {"shape": outputs.shape}, outputs.tobytes()


def _load(told: Mapping[str, Any]) -> dict:
    runtime: Any = import_module(kinds.FOREIGN[told["kind"]].module)
    runtime.start(told.get("threads"))
    child.limit_memory(told["memory"])
    network: Network = runtime.load(Path(told["path"]), told.get("threads"))
    network = network._replace(features=cache(network.features))
    # an exported network is given pixels as they are
    shown = None if told["input"] is None else pixels.resolved(told["input"], network.declared)
    _loaded[:] = [_Loaded(network, shown, network.declared.shape[0] or told["batch_size"])]
    return {"input": str(shown)}


def _outputs(images: np.ndarray, loaded: _Loaded, call: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """float32 [n, ...]: of a batch that is always of one size, filled up with its first image, so that what is said of
    an image does not depend on how many come with it."""
    count, batch_size = len(images), loaded.batch_size
    if count < batch_size:
        images = np.concatenate([images, np.repeat(images[:1], batch_size - count, axis=0)])
    found = np.asarray(call(images if loaded.shown is None else pixels.prepare(images, loaded.shown)))
    as_it_should = found.ndim == 2 or call is not loaded.network.call
    if not as_it_should or len(found) != batch_size or found.dtype.kind != "f":
        raise InputError(
            f"of {batch_size} images it gives {found.dtype} {list(found.shape)}; it must be floats of [{batch_size}, "
            "classes]."
        )
    return found[:count].astype(np.float32)


def _timed(images: np.ndarray, loaded: _Loaded, seconds: float) -> dict:
    """Seconds that a call on these images takes, of calls for so many seconds, the first ones left out; and the most
    memory, in bytes, that this process has had."""
    least, most = _CALLS
    for _ in range(least):
        loaded.network.call(images)
    taken: list[float] = []
    while len(taken) < least or (len(taken) < most and sum(taken) < seconds):
        started = time.perf_counter()
        loaded.network.call(images)
        taken.append(time.perf_counter() - started)
    median, p95 = np.percentile(taken, [50, 95]).tolist()
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    peak = next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return {"median": median, "p95": p95, "calls": len(taken), "peak_memory": peak}
