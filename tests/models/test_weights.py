"""Weights made in memory: the file that Keras would have written, and reads."""

import h5py
import pytest

from kdrun.models import build as models
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

from kdrun.models.weights import save_weights  # noqa: E402

NETS = [
    {"name": "mlp", "hidden_units": [8, 8], "input_dropout": 0.5, "hidden_dropout": 0.5, "max_norm": None},
    {"name": "densenet", "blocks": [1, 2], "growth_rate": 4},
    {"name": "convnet", "filters": [4, 8]},
]


def held(path) -> dict[str, bytes]:
    """Every dataset of an HDF5 file: its type, shape and bytes by name."""
    found = {}

    def visit(name, item):
        found[name] = (item.dtype, item.shape, item[()].tobytes()) if hasattr(item, "dtype") else None

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.mark.parametrize("keys", NETS, ids=[net["name"] for net in NETS])
def test_the_file_is_what_keras_writes_and_reads(keys, tmp_path):
    model = models.build(keys, (16, 16, 1), 10, 0, "float32")
    ours, keras = tmp_path / "ours.weights.h5", tmp_path / "keras.weights.h5"
    save_weights(model, ours)
    model.save_weights(keras)
    assert held(ours) == held(keras) and len(held(ours)) > 4
    for path in (ours, keras):
        other = models.build(keys, (16, 16, 1), 10, 1, "float32")
        other.load_weights(path)
        for variable, expected in zip(other.variables, model.variables, strict=True):
            assert variable.numpy().tobytes() == expected.numpy().tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [keras.name, ours.name]
