"""An ONNX model, run by onnxruntime: a graph of known operations, and no code."""

from pathlib import Path

from kdrun.errors import InputError, text
from kdrun.teachers.foreign_network import Network
from kdrun.teachers.pixels import Declared

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_DTYPES |= {f"tensor({name})": name for name in ("uint8", "int8", "int32", "int64")}


def start(threads: int | None = None) -> None:
    """Load the runtime."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what is wrong is raised


def load(path: Path, threads: int | None = None) -> Network:
    """The network. Raises InputError where it cannot be loaded, or is not of images and classes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    content = path.read_bytes()  # not by its name: weights in other files, of which no sum is known, are not found then
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        advice = "Export it again."
        if any(word in str(error) for word in ("external", "model_path must not be empty")):
            advice = "Its weights are in another file: export it as one, torch.onnx.export(..., external_data=False)."
        raise InputError(f"onnxruntime {onnxruntime.__version__} cannot load it ({text(error)}). {advice}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2 or inputs[0].type not in _DTYPES:
        raise InputError(
            f"it has inputs {[(each.type, each.shape) for each in inputs]} and outputs "
            f"{[each.shape for each in outputs]}; it must have one input, images, and one output, [batch, classes]."
        )
    given, output = inputs[0], outputs[0].name
    shape = tuple(each if isinstance(each, int) else None for each in given.shape)
    declared = Declared(shape, _DTYPES[given.type])
    return Network(declared, lambda images: session.run([output], {given.name: images})[0])
