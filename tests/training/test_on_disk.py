"""Training images that stay on disk: the same bits as from the device's memory."""

import json
import shutil
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
    record = json.loads((trained["on"]["distill"] / "run.json").read_text())
    assert record["config"]["data"]["name"] == "folder" and record["validation_images"] == 20
    labels = np.load(trained["on"]["distill"] / "predictions/test.npz")["labels"]
    assert sorted(np.bincount(labels).tolist()) == [2] * 5 + [3] * 5 and Path(record["config"]["data"]["path"]).exists()


def test_a_comparison_shows_pictures_of_the_data_that_its_command_names_and_decodes_nothing_else(trained, tmp_path):
    """A run may be somebody else's, and say that a store is to be filled anywhere."""
    top = trained["on"]["student"].parents[1]
    data = json.loads((trained["on"]["student"] / "run.json").read_text())["config"]["data"]
    named = ["data=folder", *(f"data.{key}={data[key]}" for key in ("path", "store", "image_size"))]
    for given, shown in (([], False), (named, True)):
        forget()
        shutil.rmtree(data["store"])
        assert main(["stage=compare", f"runs={top}", f"outputs={tmp_path / str(shown)}", *given]) == 0
        (page,) = tmp_path.glob(f"{shown}/compare/*/report.html")
        assert ("Surest mistakes" in page.read_text()) == shown == Path(data["store"]).exists()
        if not shown:
            Path(data["store"]).mkdir()
