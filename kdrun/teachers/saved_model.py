"""A SavedModel: a folder of TensorFlow's, from tf_keras, Keras 3's `model.export`, or others.

Its graph may read and write files: it is code, and run in a process of its own, which does not keep it from that.
"""

from pathlib import Path

import numpy as np

from kdrun.errors import InputError, text
from kdrun.teachers.foreign_network import Network
from kdrun.teachers.pixels import Declared

_SIGNATURES = ("serving_default", "serve")


def start(threads: int | None = None) -> None:
    """Load the runtime, to use so many threads."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads or 0)

    tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def load(path: Path, threads: int | None = None) -> Network:
    """The network of its signature. Raises InputError where it cannot be loaded, or is not of images and classes."""
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(f"TensorFlow {tf.__version__} cannot load it ({text(error)}). Export it again.") from error
    found = model.signatures
    name = next((name for name in _SIGNATURES if name in found), next(iter(found), None))
    if name is None:
        raise InputError("it has no signatures, which say what it is given. Export it again: model.export(FOLDER).")
    signature = found[name]
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    ranks = [each.shape.rank for each in outputs.values()]
    if len(inputs) != 1 or ranks not in ([2], [None]):
        raise InputError(
            f"its signature {name} has {len(inputs)} inputs and outputs of the shapes "
            f"{[each.shape.as_list() if each.shape.rank else None for each in outputs.values()]}; it must have one "
            "input, images, and one output, [batch, classes]."
        )
    ((given, spec),), (output,) = inputs.items(), outputs
    if spec.shape.rank is None:
        raise InputError(f"its signature {name} does not say how many axes its input has. Export it with a shape.")
    declared = Declared(tuple(spec.shape.as_list()), spec.dtype.name)

    def call(images: np.ndarray) -> np.ndarray:
        return signature(**{given: tf.constant(images)})[output].numpy()

    call.model = model  # type: ignore[attr-defined] # whose variables go when it does
    return Network(declared, call)
