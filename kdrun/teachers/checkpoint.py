"""A finished run's network, loaded to teach or to be measured. Importable without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdrun.data import preparation
from kdrun.errors import InputError, text
from kdrun.models import build as models
from kdrun.models.weights import load_weights
from kdrun.runs import record as runs
from kdrun.runs import run_json

WEIGHTS = "checkpoints/best.weights.h5"


def model_of(run_dir: Path, which: str = "best") -> Mapping:
    """The model of a run's network, as its record has it. Raises InputError where that is of no network."""
    record, path = runs.read(run_dir), run_dir / "checkpoints" / f"{which}.weights.h5"
    if not path.is_file():
        raise InputError(f"{path} is not there, or no file. Give another run.")
    if wrong := run_json.no_network(record, path.stat().st_size):
        raise InputError(f"{run_dir / 'run.json'} is damaged, or not the record of a network: {wrong}.")
    try:
        models.features(record["model"])
    except Exception as error:  # whatever a model makes of its keys
        raise _no_network(run_dir, error) from error
    return record["model"]


def load(run_dir: Path, policy: str, which: str = "best"):
    """The network of a completed run with its `best` or `last` weights, frozen.

    Raises InputError where its record is of no network, or its weights are of another one.
    """
    keys, record = model_of(run_dir, which), runs.read(run_dir)
    try:
        model = models.build(keys, tuple(record["image_shape"]), record["num_classes"], record["seed"], policy)
    except Exception as error:  # whatever a model's own keys make of it
        raise _no_network(run_dir, error) from error
    load_weights(model, run_dir / "checkpoints" / f"{which}.weights.h5")
    model.trainable = False
    return model


def prepared(run_dir: Path, images: np.ndarray) -> np.ndarray:
    """Images, uint8 [n, height, width, channels], as the network of a run is shown them, float32. Loads TensorFlow."""
    from kdrun.models.preprocessing import prepare

    return prepare(images, preparation.of_run(runs.read(run_dir))).numpy()


def _no_network(run_dir: Path, error: Exception) -> InputError:
    return InputError(f"{run_dir}: no network can be made as run.json says ({text(error)}). Give another run.")
