"""A Keras 3 model in a `.keras` or `.h5` file. Runs in a process of its own; nothing in the file is run as code.

Keras 3 loads it in its safe mode. What that could not know, or could not load, is looked for in the file's text before.
"""

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import InputError, text
from kdrun.teachers.foreign_network import Feature, Network
from kdrun.teachers.pixels import Declared

_INSTEAD = (
    "Load it where its code is, and give what model.export(FOLDER) makes of it: teacher.file=FOLDER, a SavedModel."
)
_BUILTIN = ("keras", "builtins")
_LONGEST = 1 << 26  # bytes of a config
_STAGES = 4
_EDGES = ("ZeroPadding2D", "Cropping2D")  # which do nothing but add an edge, or take one off
_FEW = 0.01  # by which pixels from 0 to 255 are multiplied, at most; others are in [0, 1] already


def start(threads: int | None = None) -> None:
    """Load the runtime."""
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    keras.config.disable_traceback_filtering()


def load(path: Path, threads: int | None = None) -> Network:
    """The model. Raises InputError where the file has code in it, or is not a whole model of Keras."""
    import keras

    config, version = _config(path)
    if custom := next(_custom(config), None):
        raise InputError(f"it has code in it, {custom}, which kdrun does not run. {_INSTEAD}")
    try:
        with _named(path) as name:
            model = keras.models.load_model(name, compile=False, safe_mode=True)
    except Exception as error:
        of_old = version.startswith(("1.", "2."))
        advice = f"It was saved by Keras {version}. {_INSTEAD}" if of_old else "Save it again."
        raise InputError(f"Keras {keras.__version__} cannot load it ({text(error)}). {advice}") from error
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise InputError(
            f"it has {len(inputs)} inputs and outputs of the shapes {[list(each.shape) for each in outputs]}; it must "
            "have one input, images, and one output, [batch, classes]."
        )
    (given,) = inputs
    declared = Declared(tuple(given.shape), str(given.dtype), _scales(model))
    return Network(declared, _called(model), partial(_features, model))


def _called(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    forward = tf.function(lambda images: model(images, training=False))
    return lambda images: forward(tf.constant(images)).numpy()


def _features(model: Any) -> dict[str, Feature]:
    """`stage1` and so on, the last layers of the last four sizes of maps, and `embedding`, what the classifier is
    given; as far as the model has them, of a size that it says."""
    import keras

    layers, by_side, embedding = list(_layers(model)), {}, None
    for layer, given, made in layers:
        if len(made.shape) == 4 and type(layer).__name__ not in _EDGES:
            by_side[made.shape[1]] = made
        if isinstance(layer, keras.layers.Dense) and len(given.shape) == 2:
            embedding = given
    last = next((made.shape[1] for _, _, made in reversed(layers) if len(made.shape) == 4), None)
    sides = [side for side in by_side if side and last and side >= last][-_STAGES:]  # gates have maps of one pixel
    found = {f"stage{number}": by_side[side] for number, side in enumerate(sides, 1)}
    if embedding is not None:
        found["embedding"] = embedding
    return {
        name: Feature(tuple(each.shape[1:]), _called(keras.Model(model.inputs, each)))
        for name, each in found.items()
        if None not in each.shape[1:]
    }


def _layers(model: Any) -> Iterator[tuple[Any, Any, Any]]:
    """A model's layers in order, those of models inside of it, too, with what each is given and makes, as symbolic
    tensors of the model's own input."""
    import keras

    for layer in model.layers:
        nodes = layer._inbound_nodes  # noqa: SLF001 - Keras says nowhere else what a layer is given
        if not nodes or not nodes[-1].input_tensors:
            continue
        given = nodes[-1].input_tensors[0]
        if isinstance(layer, keras.Model):
            inner = list(_layers(layer))
            tensors = [tensor for _, *both in inner for tensor in both]
            outer = keras.Model(layer.inputs, tensors)(given)
            yield from zip([each for each, *_ in inner], outer[::2], outer[1::2], strict=True)
        elif len(nodes[-1].output_tensors) == 1:
            yield layer, given, nodes[-1].output_tensors[0]


def _config(path: Path) -> tuple[Any, str]:
    """A model's config and the version of the Keras that has saved it, from its file."""
    if _is_zip(path):
        try:
            with zipfile.ZipFile(path) as archive:
                config, metadata = (json.loads(_member(archive, name)) for name in ("config.json", "metadata.json"))
        except (OSError, ValueError, KeyError, RecursionError, zipfile.BadZipFile) as error:
            raise InputError(f"it is damaged ({text(error, 100)}). Save it again.") from error
        version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
        if version.startswith("2."):
            raise InputError(f"it was saved by Keras {version}, whose .keras files Keras 3 cannot read. {_INSTEAD}")
        return config, version
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                raise InputError("it holds weights alone, and no network. Save the whole model: model.save(FILE).")
            config, version = (
                each.decode() if isinstance(each, bytes) else str(each)
                for each in (file.attrs["model_config"], file.attrs.get("keras_version", ""))
            )
            return json.loads(config), version
    except (OSError, ValueError, KeyError, RuntimeError, RecursionError) as error:
        raise InputError(f"it is damaged, or cut short ({text(error, 100)}). Save it again.") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _LONGEST:
        raise ValueError(f"{name} is too long")
    return archive.read(name)


def _custom(config: Any) -> Iterator[str]:
    """The names of what in a config is code, or of somebody's own."""
    if isinstance(config, dict):
        name, module, registered = (config.get(key) for key in ("class_name", "module", "registered_name"))
        if isinstance(name, str):
            of_others = isinstance(module, str) and module.split(".")[0] not in _BUILTIN
            is_function = name == "function" and not str(module).startswith("keras")
            if name in ("Lambda", "__lambda__", "TFOpLambda") or of_others or is_function or ">" in str(registered):
                yield f"{config.get('config') if is_function else name}"
        for value in config.values():
            yield from _custom(value)
    elif isinstance(config, list):
        for value in config:
            yield from _custom(value)


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """A name by which Keras, which goes by names, knows what the file is."""
    suffix = ".keras" if _is_zip(path) else ".h5"
    if path.suffix == suffix:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"model{suffix}")
        link.symlink_to(path.resolve())
        yield link


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _scales(model: Any) -> bool:
    """Whether a model's first layers scale pixels from 0 to 255 themselves."""
    for layer in _in_order(model):
        kind = type(layer).__name__
        if kind == "Rescaling":
            return bool(np.max(layer.scale) <= _FEW)
        if kind == "Normalization":
            return bool(layer.mean is not None and np.max(np.asarray(layer.mean)) > 1)
        if layer.weights:
            return False
    return False


def _in_order(model: Any) -> Iterator[Any]:
    for layer in getattr(model, "layers", ()):
        if getattr(layer, "layers", None):
            yield from _in_order(layer)
        else:
            yield layer
