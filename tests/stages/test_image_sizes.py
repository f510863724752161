"""Teacher and student that see images of different sizes: in a pipeline, under objectives on features, afterwards."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny_images

from kdrun.cli.main import main

MAPS = ["model@teacher.model=convnet", "teacher.model.filters=[4,6]", "model@student.model=convnet"]
MAPS += ["student.model.filters=[2,3]", "teacher.image_size=16", "objective=[kd,fitnet,attention]"]
MAPS += ["data.normalise=dataset", "teacher.normalise=[[0.5],[0.25]]"]


def record(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[list[str], dict[str, Path]]:
    """The overrides of a pipeline whose teacher sees twice as many pixels a side as its student; its runs by stage."""
    outputs = tmp_path_factory.mktemp("sizes")
    given = [word for word in tiny_images.write(outputs / "my.npz") if "hidden_units" not in word and "mlp" not in word]
    given += [*MAPS, f"outputs={outputs}"]
    assert main(given) == 0
    stages = ("teacher", "student", "distill")
    return given, {stage: next(outputs.glob(f"{stage}/*/run.json")).parent for stage in stages}


def test_each_network_has_its_own_size_and_is_measured_at_it(trained, capsys):
    given, runs = trained
    for stage, size in (("teacher", 16), ("student", 8), ("distill", 8)):
        found = record(runs[stage])
        assert found["image_shape"] == [size, size, 1]
        assert found["config"]["data"]["image_size"] == found["identity"]["data"]["image_size"] == size
        assert main(["stage=evaluate", f"run={runs[stage]}", given[-1]]) == 0  # which gives what run.json says
    assert record(runs["teacher"])["normalisation"] == {"mean": [0.5], "std": [0.25]}
    assert "normalisation" not in record(runs["student"])["identity"]
    assert record(runs["student"])["identity"]["data"]["normalise"] == "dataset"
    distilled = record(runs["distill"])["results"]["test"]["best"]
    logits = [np.load(runs[stage] / "predictions/test.npz")["logits"] for stage in ("distill", "teacher")]
    agreement = np.mean(logits[0].argmax(axis=1) == logits[1].argmax(axis=1))
    assert distilled["teacher_agreement"] == pytest.approx(agreement, abs=1.5 / 64)
    assert record(runs["distill"])["results"]["test"]["last"]["teacher_kl"] > 0


def test_on_other_data_a_network_is_shown_what_it_was_trained_with(trained, tmp_path):
    """And so is one whose biases were shifted."""
    _, runs = trained
    other = tiny_images.images()
    other = {key: array // 2 + 20 if key.startswith("x") else array for key, array in other.items()}
    np.savez(tmp_path / "darker.npz", **other)
    shifted = ["stage=adjust_bias", f"run={runs['student']}", "classes=[1]", f"outputs={tmp_path}"]
    assert main([*shifted, f"hydra.run.dir={tmp_path / 'shifted'}"]) == 0
    own = tiny_images.images()["x_train"][64:].astype(float) / 255
    images = (other["x_test"][..., np.newaxis] / 255 - own.mean()) / own.std()
    for number, run in enumerate((runs["student"], tmp_path / "shifted")):
        place, darker = tmp_path / str(number), ["data=npz", f"data.path={tmp_path / 'darker.npz'}"]
        command = ["stage=evaluate", f"run={run}", *darker, f"outputs={tmp_path}", f"hydra.run.dir={place}"]
        assert main(command) == 0
        expected = reference.measures(reference.logits(run, "best", images), other["y_test"])
        assert {key: record(place)["results"]["best"][key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_another_size_of_the_students_asks_the_teacher_no_more(trained, capsys):
    given, _ = trained
    capsys.readouterr()
    for size in (10, 12):
        assert main([*given, "stage=distill", f"student.image_size={size}", "objective=kd"]) == 0
    said = capsys.readouterr().out
    assert said.count("the teacher's logits are in") == 2 and "asking the teacher" not in said  # the pipeline has


def test_the_same_command_reuses_all_and_a_larger_teacher_is_another(trained, capsys):
    given, _ = trained
    assert main(given) == 0
    assert capsys.readouterr().out.count("reusing the completed run") == 3
    assert main([*given, "stage=distill", "teacher.image_size=20"]) == 2
    assert "no completed teacher run" in capsys.readouterr().err


def test_specialists_see_what_their_generalist_saw(trained, capsys):
    given, runs = trained
    command = [*given, "stage=specialists", f"run={runs['teacher']}", "objective=kd"]
    for given, said in (
        ("teacher.image_size=8", "data.image_size=16, and specialists begin as it: teacher.image_size is 8. Set"),
        ("teacher.normalise=none", "data.normalise=[[0.5], [0.25]], and specialists"),
    ):
        assert main([*command, given]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_generations_are_of_the_students_size(trained, tmp_path):
    given, _ = trained
    assert main([*given[:-1], "stage=generations", "generations=1", f"outputs={tmp_path}"]) == 0
    (run_json,) = tmp_path.glob("distill/*/run.json")
    assert record(run_json.parent)["image_shape"] == [8, 8, 1]
