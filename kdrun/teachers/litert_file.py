"""A LiteRT model, once TensorFlow Lite's, run by ai-edge-litert: a graph of known operations, and no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import InputError, text
from kdrun.teachers.foreign_network import Network
from kdrun.teachers.pixels import Declared


def start(threads: int | None = None) -> None:
    """Load the runtime."""
    import ai_edge_litert.interpreter  # noqa: F401


def load(path: Path, threads: int | None = None) -> Network:
    """The network. Raises InputError where it cannot be loaded, or is not of images and classes."""
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=threads)
        interpreter.allocate_tensors()
    except Exception as error:
        found = version("ai-edge-litert")
        raise InputError(f"ai-edge-litert {found} cannot load it ({text(error)}). Convert it again.") from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0]["shape"]) != 2:
        raise InputError(
            f"it has inputs {[each['shape'].tolist() for each in inputs]} and outputs "
            f"{[each['shape'].tolist() for each in outputs]}; it must have one input, images, and one output, [batch, "
            "classes]."
        )
    (given,), (output,) = inputs, outputs
    # whole numbers that stand for pixels themselves are given as they are, others are made of floats here
    scale, zero = given["quantization"]
    is_scaled = (scale, zero) not in ((0.0, 0), (1.0, 0))
    declared = Declared(tuple(given["shape"].tolist()), "float32" if is_scaled else given["dtype"].__name__)

    def call(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], _whole(images, given) if is_scaled else images)
        interpreter.invoke()
        return _floats(interpreter.get_tensor(output["index"]), output)

    return Network(declared, call)


def _whole(numbers: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Floats as the whole numbers that stand for them."""
    (scale, zero), limits = details["quantization"], np.iinfo(details["dtype"])
    return np.clip(np.rint(numbers / scale) + zero, limits.min, limits.max).astype(details["dtype"])


def _floats(numbers: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """What whole numbers stand for; floats as they are."""
    scale, zero = details["quantization"]
    return numbers if numbers.dtype.kind == "f" else (numbers.astype(np.float32) - zero) * np.float32(scale)
