"""Weights made in memory: the file that Keras would have written, and reads."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from kdrun.models import build as models
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

from kdrun.models.weights import load_weights, save_weights  # noqa: E402

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


def test_weights_of_a_run_of_format_5_are_read():
    """Written by commit c89e8d5, whose batch normalisation was tf_keras' own; and the logits that it had."""
    keys = {"name": "densenet", "growth_rate": 2, "blocks": [2, 1]}
    network = models.build(keys, (8, 8, 1), 3, 1, "float32")
    load_weights(network, Path(__file__).parents[1] / "golden/densenet.weights.h5")
    random = np.random.default_rng(5)
    for found in network.get_weights():
        shape = found.shape
        drawn = 0.5 + random.random(shape) if found.ndim == 1 else random.normal(size=shape)
        np.testing.assert_array_equal(found, drawn.astype(np.float32))
    logits = network(np.random.default_rng(6).random((4, 8, 8, 1), dtype=np.float32), training=False)
    expected = [
        [38.59480667114258, -81.106201171875, -16.42908477783203],
        [33.69491958618164, -63.041954040527344, -1.6806235313415527],
        [41.8709602355957, -66.63102722167969, -4.772996425628662],
        [39.60136413574219, -72.90560150146484, -8.99241828918457],
    ]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
