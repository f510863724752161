"""An ONNX model: for onnxruntime and whatever else reads it, on servers, in browsers. Any number of images at once."""

import tempfile
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.export.whole import INPUT, Whole

_OPSET = 17  # of 2022: what runs these files reads it, and so does the code below


def made(whole: Whole, quantize: str, calibration: np.ndarray) -> bytes:
    """The file's bytes.

    With `quantize` int8, weights are int8 by output channel and activations uint8 by the ranges that they have on the
    images of `calibration`, uint8 [n, height, width, channels], as operations between QuantizeLinear and
    DequantizeLinear.
    """
    import onnx

    content = _in_floats(whole)
    if quantize == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        halves = convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True)
        return halves.SerializeToString(deterministic=True)
    return content if quantize == "none" else _quantised(content, quantize, calibration)


@lru_cache(maxsize=1)
def _in_floats(whole: Whole) -> bytes:
    """The network as it is, which all the others are made of."""
    import tf2onnx

    graph = whole.graph(None)
    model, _ = tf2onnx.convert.from_function(graph, graph.input_signature, opset=_OPSET)
    _rename(model.graph, whole.output)
    return model.SerializeToString(deterministic=True)


def _rename(graph: Any, output: str) -> None:
    """Name what is computed by its place in the graph, and the result `output`: tf2onnx names by counters that go on
    from one network to the next, in the order of sets."""
    numbers, names = count(), {graph.input[0].name: INPUT, graph.output[0].name: output, "": ""}
    constants = {each.name: each for each in graph.initializer}
    used = []
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name not in names:
                names[name] = f"{node.op_type}_{next(numbers)}"
                used += [constants[name]] if name in constants else []
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        node.name = f"{node.op_type}_{next(numbers)}"
    for each in used:
        each.name = names[each.name]
    graph.input[0].name, graph.output[0].name = INPUT, output
    kept = [type(each).FromString(each.SerializeToString()) for each in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)


def _quantised(content: bytes, quantize: str, calibration: np.ndarray) -> bytes:
    from onnxruntime import quantization

    class Calibration(quantization.CalibrationDataReader):
        images = iter(calibration)

        def get_next(self) -> dict | None:
            image = next(self.images, None)
            return None if image is None else {INPUT: image[np.newaxis]}

    with tempfile.TemporaryDirectory() as folder:
        before, after = (str(Path(folder, name)) for name in ("before.onnx", "after.onnx"))
        Path(before).write_bytes(content)
        weights = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
        if quantize == "dynamic":
            quantization.quantize_dynamic(before, after, **weights)
        else:
            quantization.quantize_static(before, after, Calibration(), **weights)
        return Path(after).read_bytes()
