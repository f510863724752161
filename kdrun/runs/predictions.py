"""Predictions of a run on the test images: its predictions/test.npz. No TensorFlow in here."""

import io
from pathlib import Path

import numpy as np

from kdrun.errors import InputError
from kdrun.storage import arrays, files


def read(run_dir: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels int [n] and the best weights' logits float32 [n, classes] on the test set.

    Raises InputError where the file holds anything else.
    """
    path = Path(run_dir) / "predictions" / "test.npz"
    found = arrays.Npz(path, ("labels", "logits"), "The run is damaged.").read()
    labels, logits = found["labels"], found["logits"]
    kinds = labels.dtype.kind in "iu" and logits.dtype.kind == "f"
    if not kinds or logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)} and logits {logits.dtype} {list(logits.shape)}; "
            "they must be integers [n] and floats [n, classes]. The run is damaged."
        )
    if not labels.size or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(f"{path}: its labels are none, or not from 0 to {logits.shape[1] - 1}. The run is damaged.")
    try:
        return labels, arrays.float32(logits)
    except ValueError as error:
        raise InputError(f"{path}: logits are {error}. The run is damaged.") from error


def write(path: Path, labels: np.ndarray, best: np.ndarray, last: np.ndarray) -> None:
    """Write labels, int [n], and the logits, [n, classes], of the best and of the last weights, all or nothing.

    Made in memory first: a half-written archive complains once more when it is let go of.
    """
    memory = io.BytesIO()
    np.savez(memory, labels=labels, logits=best, last_logits=last)
    files.write_bytes(path, memory.getbuffer())
