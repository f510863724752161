"""The recipes of the CIFAR-100 benchmark, on small files of CIFAR's own format."""

import json
from pathlib import Path

import numpy as np
import pictures
import pytest

from kdrun.cli.main import main

SHORT = ["epochs=2", "batch_size=32", "optimizer.step_epochs=[1]", "data.validation_size=20", "data.split=first"]
SHORT += ["evaluation_batch_size=20", "measure_latency=false", "tensorboard.histograms=false", "workers=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of a hundred classes, each of one brightness."""
    random, held = np.random.default_rng(0), {}
    for split, count in (("train", 100), ("test", 40)):
        held[f"y_{split}"] = np.arange(count, dtype=np.uint8) % 100
        noise = random.integers(0, 50, (count, 32, 32, 3))
        held[f"x_{split}"] = (2 * held[f"y_{split}"][:, None, None, None] + noise).astype(np.uint8)
    return pictures.write_cifar100(tmp_path_factory.mktemp("cifar") / "cifar-100-binary", held)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "smaller"),
    [
        (
            "resnet32x4_resnet8x4",
            ["teacher.model.widths=[8,8,16,32]", "teacher.model.depth=8", "student.model.depth=8"],
        ),
        ("wrn_40_2_wrn_16_2", ["teacher.model.depth=16", "student.model.depth=10"]),
    ],
)
def test_a_recipe_runs_on_files_in_cifars_own_format(recipe, smaller, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([f"experiment=cifar100/{recipe}", f"data.path={folder}", *SHORT, *smaller]) == 0
    found = {path.parent: json.loads(path.read_text()) for path in Path("outputs").rglob("run.json")}
    trained = {record["stage"]: run_dir for run_dir, record in found.items() if "steps" in record.get("results", {})}
    assert trained.keys() == {"teacher", "student", "distill"}
    for run_dir in trained.values():
        record = found[run_dir]
        assert record["num_classes"] == 100 and record["image_shape"] == [32, 32, 3]
        assert record["results"]["steps"] == 2 * 4  # of all 100 images, those of validation as well
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
        assert rates == pytest.approx([0.05, 0.005], rel=1e-5)
