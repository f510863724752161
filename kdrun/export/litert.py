"""A LiteRT model, once TensorFlow Lite's: for phones and boards, one image at a time."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kdrun.export.whole import Whole


def made(whole: Whole, quantize: str, calibration: np.ndarray) -> tuple[bytes, bool]:
    """The file's bytes, and whether all of it is quantised that was to be.

    With `quantize` int8, weights are int8 by output channel, and activations int8 by the ranges that they have on the
    images of `calibration`, uint8 [n, height, width, channels] (arXiv 1712.05877); the input is still uint8, a pixel a
    number. Operations that have no int8 kernel stay floats.
    """
    converter = _converter(whole, tf.float32 if quantize == "int8" else tf.uint8)
    if quantize == "none":
        return converter.convert(), True
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize != "int8":
        return converter.convert(), True
    try:
        return _int8(converter, calibration, [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]), True
    except Exception:  # noqa: BLE001 - of the converter's own kinds: an operation has no int8 kernel
        converter = _converter(whole, tf.float32)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return _int8(
            converter, calibration, [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        ), False


def _converter(whole: Whole, pixels: tf.DType) -> tf.lite.TFLiteConverter:
    graph = whole.graph(1, pixels)
    return tf.lite.TFLiteConverter.from_concrete_functions([graph.get_concrete_function()], whole.module())


def _int8(converter: tf.lite.TFLiteConverter, calibration: np.ndarray, operations: list) -> bytes:
    def images() -> Iterator[list[np.ndarray]]:
        for image in spanned(calibration):
            yield [image[np.newaxis].astype(np.float32)]

    converter.representative_dataset = images
    converter.target_spec.supported_ops = operations
    converter.inference_input_type, converter.inference_output_type = tf.uint8, tf.float32
    return converter.convert()


def spanned(images: np.ndarray) -> np.ndarray:
    """Images and, where they lack black or white, the first one with a pixel of each, so that the input's range is 0 to
    255, and each of its 256 steps one of a pixel."""
    if images.min() == 0 and images.max() == 255:
        return images
    first = images[:1].copy()
    first.reshape(-1)[0], first.reshape(-1)[-1] = 0, 255
    return np.concatenate([images, first])
