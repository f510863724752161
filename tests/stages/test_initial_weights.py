"""Networks that begin with another's weights, of a run or a file: which they take, what stays as it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from held import arrays
from tiny_images import images, write

from kdrun.cli.main import main
from kdrun.runs import record as runs
from kdrun.storage.manifest import sealed

STILL = ["optimizer=sgd", "optimizer.learning_rate=1e-30"]  # a step moves no weight by a bit
NORMED = ["model@teacher.model=densenet", "teacher.model.blocks=[1,1]", "teacher.model.growth_rate=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("initial")


@pytest.fixture(scope="module")
def given(folder) -> list[str]:
    """A teacher on four classes, a step an epoch."""
    return [*write(folder / "four.npz"), "batch_size=320", "stage=teacher", f"outputs={folder}"]


@pytest.fixture(scope="module")
def of_three(folder, given) -> list[str]:
    """The same on three classes."""
    found = images()
    found |= {name: labels % 3 for name, labels in found.items() if name.startswith("y")}
    np.savez(folder / "three.npz", **found)
    return [*given, f"data.path={folder / 'three.npz'}"]


@pytest.fixture(scope="module")
def run(folder, given) -> Path:
    """A finished run that others begin with."""
    return done(*given, "epochs=2", "seed=1")


def done(*arguments: str) -> Path:
    """The run directory of a command."""
    outputs = Path(next(each for each in arguments if each.startswith("outputs=")).removeprefix("outputs="))
    before = set(outputs.glob("*/*/run.json"))
    assert main(list(arguments)) == 0
    (made,) = set(outputs.glob("*/*/run.json")) - before
    return made.parent


def held(run_dir: Path, which: str = "last") -> dict[str, bytes]:
    """All arrays of weights: hidden1, hidden2 and the classifier of an mlp, and their names alone."""
    return {name.removeprefix("/layers/"): each for name, each in arrays(weights(run_dir, which)).items()}


def weights(run_dir: Path, which: str = "best") -> Path:
    return run_dir / f"checkpoints/{which}.weights.h5"


def of(layer: str, found: dict[str, bytes]) -> dict[str, bytes]:
    """The arrays of a layer."""
    return {name: each for name, each in found.items() if name.startswith(f"{layer}/")}


def log(run_dir: Path) -> str:
    return (run_dir / "kdrun.log").read_text()


def test_of_the_same_net_all_weights_are_taken(given, run):
    found = done(*given, *STILL, f"teacher.initial_weights={run}")
    assert held(found) == held(run, "best")
    assert "teacher: begins with teacher.initial_weights, all of them" in log(found)
    record = runs.read(found)
    assert record["initial_weights"]["weights_sha256"] == record["identity"]["initial_weights"]
    file = done(*given, *STILL, f"teacher.initial_weights={weights(run)}")
    assert runs.read(file)["fingerprint"] == record["fingerprint"]  # the same file
    last = done(*given, *STILL, f"teacher.initial_weights={weights(run, 'last')}")
    assert held(last) == held(run, "last")


def test_of_other_classes_all_but_the_classifier(of_three, run, tmp_path):
    """Which is drawn as ever, and learns at a rate of its own."""
    copied = tmp_path / "copied.weights.h5"  # nothing beside it says what it is of
    shutil.copy(weights(run), copied)
    drawn = held(done(*of_three, *STILL))
    for begins in (run, copied):
        found = done(*of_three, *STILL, f"teacher.initial_weights={begins}")
        assert "begins with teacher.initial_weights, all but the classifier: 4 classes there, 3 here" in log(found)
        taken, classifier = held(found), of("dense_2", held(found))
        assert {**taken, **classifier} == {**held(run, "best"), **classifier}
        for name, each in of("dense_2", drawn).items():  # its bias is drawn as 0, which the least of steps moves
            np.testing.assert_allclose(*(np.frombuffer(x, np.float32) for x in (taken[name], each)), rtol=0, atol=1e-25)
    own = done(*of_three, *STILL, f"teacher.initial_weights={run}", "teacher.new_learning_rate=0.1")
    moved = {name for name, each in held(own).items() if each != taken[name]}
    assert moved == set(of("dense_2", drawn))
    decaying = ["optimizer=sgd", "optimizer.learning_rate=0.1", "optimizer.weight_decay=0.1", "teacher.freeze=hidden1"]
    frozen = held(done(*of_three, *decaying, f"teacher.initial_weights={run}"))
    assert {name for name, each in frozen.items() if each == taken[name]} == set(of("dense", drawn))


@pytest.mark.slow
def test_what_is_frozen_stays_as_it_is(folder, given):
    """Under decay, and with batch norm, whose statistics stay; the rest is trained, its statistics, too."""
    given = [each for each in given if "teacher.model" not in each] + NORMED
    run = done(*given, "epochs=2", "seed=1")
    decaying = ["optimizer=sgd", "optimizer.learning_rate=0.1", "optimizer.weight_decay=0.1", "epochs=2"]
    found = done(*given, *decaying, f"teacher.initial_weights={run}", "teacher.freeze=1")
    before, after = held(run, "best"), held(found)
    moved = {name for name in before if before[name] != after[name]}
    # entry, block1's 1x1 and 3x3 with their norms; then a transition, block2 and the classifier
    frozen = ("conv2d/", "pointwise/", "conv2d_1/", "batch_normalization/", "batch_normalization_1/")
    assert not [name for name in moved if name.startswith(frozen)]
    assert [name for name in before if name.startswith(frozen)]
    others = {name for name in before if not name.startswith(frozen) and "seed" not in name}
    assert moved == others and any("normalization_2/vars/3" in name for name in others)
    by_name = done(*given, *decaying, f"teacher.initial_weights={run}", "teacher.freeze=block1")
    assert held(by_name) == after
    # all but the classifier: a training step sees the net in inference mode
    probe = done(*given, *STILL, f"teacher.initial_weights={run}", "teacher.freeze=embedding")
    x, y = images()["x_train"][64:, ..., np.newaxis] / np.float32(255), images()["y_train"][64:]
    (line,) = [each for each in map(json.loads, (probe / "metrics.jsonl").open()) if each["split"] == "train"]
    assert line["loss"] == pytest.approx(reference.cross_entropy(reference.logits(run, "best", x), y), rel=1e-5)
    trainable = runs.read(probe)["parameters"]["trainable"]
    assert trainable == sum(len(each) // 4 for each in of("dense", before).values())


def test_what_cannot_be_begun_with_is_refused_in_one_line(folder, given, of_three, run, tmp_path, capsys):
    begun, damaged, flipped = tmp_path / "begun", tmp_path / "damaged", tmp_path / "some.weights.h5"
    for copy in (begun, damaged):
        shutil.copytree(run, copy)
    record = {key: value for key, value in runs.read(run).items() if key != "seal"}
    (begun / "run.json").write_text(json.dumps(sealed({**record, "status": "interrupted"})))
    weights(damaged).write_bytes(weights(damaged).read_bytes()[:-100])
    flipped.write_bytes(b"no weights at all")
    key, other = "teacher.initial_weights", ["teacher.model.hidden_units=[16,8]"]
    copied = tmp_path / "copied.weights.h5"
    shutil.copy(weights(run), copied)
    begins = f"{key}={run}"
    before = {path.name for path in (folder / "teacher").iterdir()}
    for overrides, said in (
        ([f"{key}={tmp_path}"], "is not a run directory with weights"),
        ([f"{key}={tmp_path / 'nowhere'}"], "is not there"),
        ([f"{key}={flipped}"], "or no .weights.h5 file"),
        ([f"{key}={begun}"], "is interrupted, not completed"),
        ([f"{key}={damaged}"], "best.weights.h5 is not what run.json says"),
        ([begins, *other], "is of another net: hidden_units is [16, 16], here [16, 8]"),
        ([begins, "teacher.freeze=4"], "mlp has 3 features, hidden1, hidden2, embedding"),
        (["teacher.freeze=0"], "teacher.freeze must be a whole number of at least 1"),
        (["teacher.new_learning_rate=0.1"], "is of what teacher.initial_weights has no weights for"),
        ([begins, "teacher.new_learning_rate=0.1"], "and none are new"),
        ([begins, "stage=specialists"], "specialists begin as the generalist"),
        (
            ["student.model.hidden_units=[16,16]", f"student.initial_weights={run}", "stage=mutual"],
            "all would be alike",
        ),
        (["student.freeze=1", "stage=distill", "objective=simkd", f"teacher.run={run}"], "Leave out student.freeze"),
    ):
        assert main([*given, *overrides]) == 2, overrides
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, (overrides, err)
    assert {path.name for path in (folder / "teacher").iterdir()} == before  # nothing was made
    for overrides, said in (  # what only a net that is made can tell
        ([f"{key}={copied}", *other], "[16, 16] there, [16, 8] here"),
        ([f"{key}={copied}", "teacher.model.hidden_units=[16]"], "it has 6 arrays of weights, this one has 4"),
        (["teacher.freeze=hiden1"], "mlp has no such layer. Did you mean hidden1?"),
        (["teacher.freeze=classifier"], "leaves nothing to train"),
        ([f"{key}={copied}", "teacher.new_learning_rate=0.1"], "and none are new"),
    ):
        assert main([*given, *overrides]) == 2, overrides
        assert said in capsys.readouterr().err, overrides


@pytest.mark.slow
def test_weights_that_have_seen_the_validation_images_are_refused(given, run, capsys):
    saw = done(*given, "teacher.train_on_validation=true")
    assert main([*given, f"teacher.initial_weights={saw}"]) == 2
    assert "has trained on 64 of the 64 images that validate the student" in capsys.readouterr().err
    found = done(*given, f"teacher.initial_weights={saw}", "teacher.overlap=allow")
    assert runs.read(found)["overlap"] == 64
    assert main([*given, "stage=distill", f"teacher.run={found}"]) == 2  # nor are those that began with them
    assert "has trained on 64 of the 64 images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_is_fine_tuned_and_distilled_in_one_pipeline(of_three, run):
    begins = [f"teacher.initial_weights={run}", "teacher.freeze=hidden1", "teacher.new_learning_rate=0.01"]
    given = [*(each for each in of_three if each != "stage=teacher"), *begins]
    outputs = Path(given[-4].removeprefix("outputs=")) if given[-4].startswith("outputs=") else run.parent.parent
    before = set(outputs.glob("teacher/*"))
    assert main(given) == 0
    (teacher,) = set(outputs.glob("teacher/*")) - before
    assert of("dense", held(teacher)) == of("dense", held(run, "best"))
    assert main([*given, "stage=distill", "seed=7", "teacher.seed=42"]) == 0  # finds that teacher again
    newest = max(outputs.glob("distill/*/run.json"), key=lambda path: path.stat().st_mtime).parent
    assert runs.read(newest)["teachers"][0]["run"] == str(teacher)
