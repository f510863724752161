"""How a network is trained, through the command line: the average of weights that it is measured by."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import reference
from made import done
from tiny_images import images, write

from kdrun.runs import record as runs

NORMED = ["model@student.model=densenet", "student.model.blocks=[1]", "student.model.growth_rate=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, list[str]]:
    """A folder, and what trains on a small data set a step an epoch."""
    folder = tmp_path_factory.mktemp("training")
    given = [each for each in write(folder / "my.npz") if "student.model" not in each]
    return folder, [*given, "batch_size=320", "stage=student"]


def weights(run_dir: Path, which: str = "last") -> dict[str, np.ndarray]:
    """All arrays of a file of weights by name, float64."""
    items = []
    with h5py.File(run_dir / f"checkpoints/{which}.weights.h5") as file:
        file.visititems(lambda name, item: items.append((name, item)))
        return {name: item[()].astype(float) for name, item in items if hasattr(item, "dtype")}


def test_a_network_is_measured_by_the_average_of_its_weights(data):
    """Batch norm's statistics, too; what it learns is as without an average."""
    folder, given = data
    given = [*given, *NORMED, "optimizer.learning_rate=0.3", "optimizer=sgd"]
    trained = [weights(done(folder, *given, f"epochs={epochs}")) for epochs in (1, 2, 3)]
    run_dir = done(folder, *given, "epochs=3", "optimizer.ema=0.6")
    found = weights(run_dir)
    shares = np.array([0.36, 0.6, 1.0]) / 1.96
    for name, value in found.items():
        expected = sum(share * each[name] for share, each in zip(shares, trained, strict=True))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    statistics = [name for name in found if "normalization" in name and name.endswith("vars/3")]
    assert statistics and all(np.ptp([each[name].sum() for each in trained]) > 0 for name in statistics)
    results = runs.read(run_dir)["results"]
    with np.load(run_dir / "predictions/test.npz") as predicted:
        for which, key in (("last", "last_logits"), ("best", "logits")):
            expected = reference.logits(run_dir, which, images()["x_test"][..., np.newaxis] / np.float32(255))
            np.testing.assert_allclose(predicted[key], expected, rtol=1e-4, atol=1e-5)
            loss = reference.cross_entropy(predicted[key], predicted["labels"])
            assert results["test"][which]["cross_entropy"] == pytest.approx(loss, rel=1e-5)
