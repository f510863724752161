"""What a network leaves in its run directory: weights and predictions.

Made in memory first, then written as bytes: HDF5 takes the process with it where the disk is full when it closes a
file, and a half-written archive complains once more when it is let go of.
"""

import io
from pathlib import Path

import numpy as np
from tf_keras.src.saving import saving_lib

from kdrun import files


def save_weights(model, path: Path) -> None:
    """Write a model's weights, all or nothing, as `model.save_weights` would: `model.load_weights` reads them."""
    memory = io.BytesIO()
    store = saving_lib.H5IOStore(memory, mode="w")
    # what model.save_weights calls, which takes nothing but the name of a file
    saving_lib._save_state(model, weights_store=store, assets_store=None, inner_path="", visited_trackables=set())
    store.close()
    files.write_bytes(path, memory.getbuffer())


def save_predictions(path: Path, labels: np.ndarray, best: np.ndarray, last: np.ndarray) -> None:
    """Write a split's labels, int [n], and the logits, [n, classes], of the best and of the last weights."""
    memory = io.BytesIO()
    np.savez(memory, labels=labels, logits=best, last_logits=last)
    files.write_bytes(path, memory.getbuffer())
