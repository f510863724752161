"""A run that begins with weights from a file of Keras'."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_golden import TINY

from kdrun.cli.main import main
from kdrun.runtime import tensorflow as startup
from kdrun.storage import files

startup.load_tensorflow()

from tf_keras import applications  # noqa: E402

import kdrun  # noqa: E402
from kdrun.models.surgery import up_to  # noqa: E402

GIVEN = ["stage=student", *TINY, "data.image_size=32", "data.train_size=32", "epochs=1", "batch_size=32"]
GIVEN += ["model@student.model=application", "optimizer=sgd", "optimizer.learning_rate=1e-9", "measure_latency=false"]


def newest() -> Path:
    return max(Path("outputs").rglob("run.json"), key=os.path.getmtime).parent


@pytest.mark.slow
def test_it_is_what_the_run_begins_with_and_part_of_its_identity_and_not_needed_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = applications.MobileNetV3Small((32, 32, 3), include_top=False, weights=None, pooling="avg")
    random = np.random.default_rng(0)
    theirs.set_weights([w + 0.1 * random.random(w.shape) for w in theirs.get_weights()])
    theirs.save_weights("mine.h5")
    assert main([*GIVEN, "student.model.weights=mine.h5"]) == 0
    run_dir = newest()
    record = json.loads((run_dir / "run.json").read_text())
    assert record["model"] == {"name": "application", "architecture": "MobileNetV3Small", "weights": "mine.h5"}
    assert record["identity"]["model"] == {**record["model"], "weights": files.sha256(Path("mine.h5"))}
    Path("mine.h5").rename("other name.h5")
    trained = up_to(kdrun.load_run(run_dir).network(), "embedding")
    for found, expected in zip(trained.weights, theirs.weights, strict=True):
        if "moving" not in found.name:  # statistics are of the one batch, too
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert main(["stage=evaluate", f"run={run_dir}"]) == 0
    assert main([*GIVEN, "student.model.weights='other name.h5'"]) == 0
    again = json.loads((newest() / "run.json").read_text())
    assert again["fingerprint"] == record["fingerprint"]
    theirs.set_weights([w + 0.1 for w in theirs.get_weights()])
    theirs.save_weights("mine.h5")
    assert main([*GIVEN, "student.model.weights=mine.h5"]) == 0
    assert json.loads((newest() / "run.json").read_text())["fingerprint"] != record["fingerprint"]
