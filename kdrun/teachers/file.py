"""A file of logits as teacher: of any model of any framework, or of people. No TensorFlow in here."""

from pathlib import Path

import numpy as np

from kdrun.data import datasets
from kdrun.errors import InputError

SPLITS = ("train", "validation", "test")


def logits(path: Path, dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """The logits in a .npz file: train, validation and test, each float32 [n, classes] in the split's order.

    Its `order` is the dataset's (see datasets.order): logits of other images, or of the same in another order, are not
    taken for these. Raises InputError for a file that does not fit.
    """
    wanted, order, found = "an .npz file with train, validation, test and order", datasets.order(dataset), {}
    try:
        with np.load(path, allow_pickle=False) as saved:
            missing = [name for name in (*SPLITS, "order") if name not in saved]
            if missing:
                raise InputError(f"teacher.logits: {path} has no {', '.join(missing)}. Give {wanted}.")
            arrays = {name: saved[name] for name in (*SPLITS, "order")}
    except (OSError, ValueError, EOFError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"teacher.logits: {path} cannot be read ({said}). Give {wanted}.") from error
    for split in SPLITS:
        array, shape = arrays[split], (len(getattr(dataset, split).labels), dataset.num_classes)
        if array.shape != shape or array.dtype.kind != "f":
            raise InputError(
                f"teacher.logits: {path}: {split} is {array.dtype} {list(array.shape)}; it must be floats of shape "
                f"{list(shape)}."
            )
        if not np.isfinite(array).all():
            raise InputError(f"teacher.logits: {path}: {split} is not all finite numbers. Give other logits.")
        found[split] = array.astype(np.float32)
    if str(arrays["order"]) != order:
        raise InputError(
            f"teacher.logits: {path} is of other images, or of these in another order: its order is "
            f"{str(arrays['order'])[:12]}, this config's data has {order}. Make it from kdrun.data.datasets.load(...)."
        )
    return found
