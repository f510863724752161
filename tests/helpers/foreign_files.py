"""Networks of other tools, as files: of images in three colours, whose classes are which colour is brightest.

`logits` is what they all compute, in float64.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
WEIGHTS = np.array([[3.0, 1.0, -1.0], [-2.0, 4.0, 0.0], [0.5, -1.0, 5.0]], np.float32)
MIX = np.array([[1.0, 0.5], [-2.0, 0.25], [0.5, 1.0]], np.float32)
LOW, HIGH = 0.4, 0.2  # of a colour's mean, what counts; so that pixels of another scale tell nothing apart

NETS = ["model@student.model=mlp", "student.model.hidden_units=[8]"]
TINY = ["data=npz", f"data.image_size={SIDE}", "data.validation_size=60", "data.split=first", "batch_size=32"]
TINY += ["epochs=1", "optimizer=adam", "measure_latency=false", "tensorboard.histograms=false", *NETS]


def images(train: int = 120, test: int = 30) -> dict[str, np.ndarray]:
    """Training and test images with labels, by the names of a .npz."""
    random, found = np.random.default_rng(0), {}
    for split, count in (("train", train), ("test", test)):
        labels = random.permutation(np.arange(count) % 3)
        x = random.integers(0, 120, (count, SIDE, SIDE, 3), np.uint8)
        x[np.arange(count), :, :, labels] += 100
        found |= {f"x_{split}": x, f"y_{split}": labels}
    return found


def write(folder: Path) -> list[str]:
    """Write the data set; the overrides that choose it, and a tiny student."""
    np.savez(folder / "my.npz", **images())
    return [*TINY, f"data.path={folder / 'my.npz'}"]


def logits(x: np.ndarray) -> np.ndarray:
    """What a network says of images, uint8 [n, side, side, 3]: float64 [n, 3]."""
    return np.clip(x.astype(np.float64).mean(axis=(1, 2)) / 255 - LOW, 0, HIGH) @ WEIGHTS.astype(np.float64) * 10


def staged(x: np.ndarray) -> dict[str, np.ndarray]:
    """What staged.keras computes of images on the way, in float64, by the names of features."""
    mixed = x.astype(np.float64) / 255 @ MIX.astype(np.float64)
    pooled = np.maximum(mixed.reshape(len(x), SIDE // 2, 2, SIDE // 2, 2, 2).mean(axis=(2, 4)), 0)
    return {"stage1": mixed, "stage2": pooled, "embedding": pooled.mean(axis=(1, 2))}


def write_onnx(path: Path, weights: np.ndarray = WEIGHTS, shape=("n", 3, SIDE, SIDE), last=(), dtype=TensorProto.FLOAT):
    """The network as an ONNX file, of channels first; `last` are nodes from `z` to `logits`."""
    axes = {"axes": [2, 3] if shape[1] in (3, None, "c") else [1, 2]}
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("ReduceMean", ["floats"], ["means"], keepdims=0, **axes)]
    nodes += [
        helper.make_node("Sub", ["means", "low"], ["above"]),
        helper.make_node("Clip", ["above", "zero", "high"], ["clipped"]),
        helper.make_node("MatMul", ["clipped", "weights"], ["z"]),
        *(last or [helper.make_node("Identity", ["z"], ["logits"])]),
    ]
    constants = {"low": np.float32(LOW), "zero": np.float32(0), "high": np.float32(HIGH), "weights": weights * 10}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (shape[0], weights.shape[1]))],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def for_ever() -> list:
    """Nodes whose loop has no end."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes_on"]), helper.make_node("Identity", ["x"], ["x_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, None),
        ],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, (), [True])
    return [
        helper.make_node("Constant", [], ["true"], value=yes),
        helper.make_node("Loop", ["", "true", "z"], ["logits"], body=body),
    ]


_MADE_BY_KERAS = """
import sys
import numpy as np
import keras
import tensorflow as tf

folder, low, high = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
weights = np.array(eval(sys.argv[4]), "float32")
x = keras.Input((8, 8, 3))
means = keras.layers.GlobalAveragePooling2D()(x)
dense = keras.layers.Dense(3, use_bias=False)
z = dense(keras.layers.ReLU(max_value=high)(keras.layers.Rescaling(1.0, offset=-low)(means)))
dense.set_weights([weights * 10])
model = keras.Model(x, z)
model.save(f"{folder}/net.keras")
model.save(f"{folder}/net.h5")
model.export(f"{folder}/exported", verbose=False)
model.export(f"{folder}/net.onnx", format="onnx", verbose=False)
pixels = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), model, keras.layers.Softmax()])
pixels.save(f"{folder}/pixels.keras")
coded = keras.Model(x, keras.layers.Lambda(lambda y: 2 * y)(model(x)))
coded.save(f"{folder}/coded.keras")
coded.save(f"{folder}/coded.h5")
model.save_weights(f"{folder}/alone.weights.h5")
mix = keras.layers.Conv2D(2, 1, use_bias=False)
inner = keras.Sequential([keras.Input((8, 8, 3)), mix, keras.layers.AveragePooling2D(2)])
mix.set_weights([np.array(eval(sys.argv[5]), "float32").reshape(1, 1, 3, 2)])
ends = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.5), keras.layers.Dense(3), keras.layers.Softmax()]
keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.ReLU(), *ends]).save(f"{folder}/staged.keras")


class Aborts(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")])
    def __call__(self, images):
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="on purpose")]):
            return tf.reduce_mean(images, [1, 2])


tf.saved_model.save(made := Aborts(), f"{folder}/aborts", signatures=made.__call__.get_concrete_function())
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tf_keras

layers = tf_keras.layers
old = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Lambda(lambda y: y), layers.Flatten(), layers.Dense(3)])
old.save(f"{folder}/old.h5")
old.save(f"{folder}/old.keras")
"""


def write_all(folder: Path) -> Path:
    """The network as Keras 3 writes it, in every form: net.keras, net.h5, exported/, net.onnx. And pixels.keras, which
    scales pixels itself and gives probabilities; staged.keras, whose features are `staged`; and files not to be
    taken."""
    given = [str(folder), str(LOW), str(HIGH), str(WEIGHTS.tolist()), str(MIX.tolist())]
    environment = {"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", _MADE_BY_KERAS, *given], check=True, capture_output=True, env=environment)
    return folder
