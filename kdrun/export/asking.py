"""An exported file, run by its own runtime in a process of its own: asked, and timed. No TensorFlow in here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdrun.data.rows import Images
from kdrun.errors import InputError, KdrunError, text
from kdrun.export import formats
from kdrun.runtime import parallel, workers
from kdrun.runtime.child import Child, Lost

AT_ONCE = 32  # images, of formats that take any number
_PROCESS = "kdrun.teachers.foreign_process"
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONFAULTHANDLER": ""}
_SECONDS = 600.0  # that it may take to load, or for a block of images
_TIMED = 1.0  # seconds of calls

Outputs = Callable[[np.ndarray], np.ndarray]  # uint8 [n, height, width, channels] -> float32 [n, classes]


class Runtime(NamedTuple):
    """A process that has loaded an exported file: `outputs` are what it says of images, `latency(image)`, uint8
    [height, width, channels], how many seconds one image takes it, median and p95, and its peak_memory in bytes."""

    outputs: Outputs
    latency: Callable[[np.ndarray], dict[str, Any]]


@contextmanager
def asked(path: Path, quantize: str, threads: int | None = None, key: str = "file") -> Iterator[Runtime]:
    """While inside, the runtime of an exported file, which is quantised so, with so many threads; None: one for each
    core.

    Raises InputError, which begins with the `key`, for whatever goes wrong there, in one line.
    """
    # where ranges are found as images come, they are of all that come together: an answer is to be of one
    batch_size = 1 if quantize == "dynamic" else AT_ONCE
    told: dict[str, Any] = {"kind": formats.of_file(path), "path": str(path.resolve()), "input": None}
    told |= {"batch_size": batch_size, "memory": workers.available_memory(), "threads": threads or parallel.cores()}
    with Child(_PROCESS, _ENVIRONMENT) as process:

        def ask(told: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
            try:
                return process.ask(told, payload, _SECONDS)
            except Lost as error:
                raise InputError(f"{key}: {path}: the process that runs it {error}. Is the file whole?") from error
            except InputError as error:
                raise InputError(f"{key}: {path}: {error}") from error
            except KdrunError as error:
                if type(error) is not KdrunError:  # a signal's
                    raise
                raise InputError(f"{key}: {path}: {text(error, 600)}") from error

        ask(told)

        def outputs(images: np.ndarray) -> np.ndarray:
            answer, payload = ask({"shape": images.shape, "feature": None}, np.ascontiguousarray(images).tobytes())
            return np.frombuffer(payload, np.float32).reshape(answer["shape"])

        def latency(image: np.ndarray) -> dict[str, Any]:
            answer, _ = ask({"shape": (1, *image.shape), "seconds": _TIMED}, np.ascontiguousarray(image).tobytes())
            return answer

        yield Runtime(outputs, latency)


def of_all(outputs: Outputs, images: Images, told: str) -> np.ndarray:
    """What it says of all images, float32 [n, classes]; a bar shows how far it is."""
    blocks = (images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE))
    total = -(-len(images) // AT_ONCE)
    return np.concatenate([found for some in parallel.in_blocks(outputs, blocks, 1, told, 1, total) for found in some])
