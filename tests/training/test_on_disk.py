"""Training images that stay on disk: the same bits as from the device's memory."""

from pathlib import Path

import numpy as np
import pictures
import pytest
from pictures import forget

from kdrun.cli.main import main

NETS = ["model@teacher.model=mlp", "teacher.model.hidden_units=[16]", "model@student.model=mlp"]
NETS += ["student.model.hidden_units=[8]", "optimizer=adam", "epochs=2", "batch_size=16", "measure_latency=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pipeline of a folder's pictures, with augmentation, by where its images were: run directories by stage."""
    top = tmp_path_factory.mktemp("on_disk")
    folder = pictures.write_folder(top / "all", pictures.arrays(150, 10, side=8), splits=("train",))
    found = {}
    for where in ("on", "off"):
        forget()
        given = ["data=folder", f"data.path={folder}", "data.image_size=8", "data.augment.jitter=1", "teacher.cache=on"]
        given += [f"outputs={top / where}", f"data.on_device={where}"]
        assert main([*NETS, *given]) == 0
        found[where] = {stage: next((top / where / stage).iterdir()) for stage in ("teacher", "student", "distill")}
    return found


@pytest.mark.parametrize("stage", ["teacher", "student", "distill"])
def test_the_bits_are_the_same_wherever_the_images_are(trained, stage):
    one, other = (trained[where][stage] for where in ("on", "off"))
    for file in ("checkpoints/last.weights.h5", "predictions/test.npz"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_a_run_has_learned_from_pictures_by_name(trained):
    import json

    record = json.loads((trained["on"]["distill"] / "run.json").read_text())
    assert record["config"]["data"]["name"] == "folder" and record["validation_images"] == 20
    labels = np.load(trained["on"]["distill"] / "predictions/test.npz")["labels"]
    assert (
        np.bincount(labels).tolist() == [3, 3, 3, 3, 3, 2, 2, 2, 2, 2]
        and Path(record["config"]["data"]["path"]).exists()
    )
