"""The paper's experiments: their presets, and the keys and stages that they brought, on MNIST cut small."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from kdrun.cli.compose import config_dir
from kdrun.cli.main import main
from kdrun.data import datasets
from kdrun.stages.adjust_bias import best_shift
from kdrun.stages.specialists import combined, confusable
from kdrun.storage.manifest import sealed

TINY = ["data.train_size=500", "data.validation_size=100", "data.test_size=200", "epochs=1", "teacher.epochs=1"]
TINY += ["batch_size=100", "teacher.batch_size=100", "tensorboard.histograms=false", "measure_latency=false"]
NETS = ["model@teacher.model=mlp", "model@student.model=mlp", "teacher.model.hidden_units=[40]", "data.image_size=28"]
NETS += ["student.model.hidden_units=[30]", "optimizer=adam"]
PRESETS = sorted(path.stem for path in (config_dir() / "experiment" / "paper").glob("*.yaml"))


def records(outputs: Path, stage: str) -> list[tuple[Path, dict]]:
    found = [(path.parent, json.loads(path.read_text())) for path in sorted(outputs.glob(f"{stage}/*/run.json"))]
    assert all(record["status"] == "completed" for _, record in found)
    return found


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    import h5py

    found = {}
    with h5py.File(run_dir / "checkpoints" / "last.weights.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if hasattr(item, "dtype") else None)
    return found


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.slow
def test_every_preset_runs(preset, tmp_path):
    given = [f"experiment=paper/{preset}", *TINY, "data=mnist", "data.train_fraction=1"]  # Fashion is not everywhere
    if preset == "ensemble":  # its teachers first, as its file says
        members = ["-m", "stage=student", *given, "seed=1,2", "sweep=paper_members", f"outputs={tmp_path}"]
        assert main(members) == 0
    if preset == "only_7_8":
        given += ["batch_size=50"]  # there are fewer of these than a hundred
    if preset == "specialists":
        given += ["clusters=5", "specialist.epochs=1", "specialist.batch_size=50"]
    assert main([*given, f"outputs={tmp_path}"]) == 0
    expected = {"teacher": ["teacher"], "student": ["student"], "ensemble": ["distill"]}
    expected |= {"specialists": ["teacher", "specialist", "specialists"]}
    for stage in expected.get(preset, ["teacher", "student", "distill", "pipeline"]):
        assert records(tmp_path, stage)


@pytest.fixture(scope="module")
def one_class_left_out(tmp_path_factory):
    """A pipeline whose students saw no 3; the teacher saw jittered images, the validation ones among them."""
    outputs = tmp_path_factory.mktemp("no_threes")
    given = [*NETS, *TINY, "data.exclude_classes=[3]", "teacher.augment.jitter=2", "teacher.train_on_validation=true"]
    given += ["teacher.overlap=allow"]
    assert main([*given, "epochs=6", "teacher.epochs=6", f"outputs={outputs}"]) == 0
    return outputs


def test_each_role_sees_its_own_images(one_class_left_out):
    labels = np.load(Path(datasets.__file__).with_name("mnist.npz"))["y_train"]
    seen = {stage: records(one_class_left_out, stage)[0][1] for stage in ("teacher", "student", "distill")}
    for stage, record in seen.items():
        count = 600 if stage == "teacher" else int(np.sum(labels[100:600] != 3))
        assert record["results"]["steps"] == 6 * -(-count // 100)
        data = record["identity"]["data"]
        assert data["augment"]["jitter"] == (2 if stage == "teacher" else 0)
        assert data["exclude_classes"] == ([] if stage == "teacher" else [3])
        assert data["train_on_validation"] == (stage == "teacher")
    best, last = (seen["teacher"]["results"]["validation"][which] for which in ("best", "last"))
    assert best == last  # nothing is chosen by images that were trained on
    assert best["epoch"] == 6


def test_the_last_weights_are_the_best_where_nothing_is_held_out(tmp_path):
    # a learning rate that rises until nothing is learned any more: the first epoch is the best
    given = ["stage=student", *NETS, *TINY, "epochs=4", "data.train_on_validation=true", "optimizer=sgd"]
    given = [*given, "optimizer.learning_rate=3", "optimizer.warmup_epochs=4"]
    assert main([*given, f"outputs={tmp_path}"]) == 0
    ((run_dir, record),) = records(tmp_path, "student")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["cross_entropy"] for line in lines if line["split"] == "validation"]
    assert min(losses) < losses[-1]  # another epoch would have been chosen
    assert record["results"]["validation"]["best"]["epoch"] == 4


def test_adjust_bias_moves_one_bias_and_leaves_a_run_that_teaches(one_class_left_out, tmp_path):
    (student, before), *_ = records(one_class_left_out, "distill")
    assert main(["stage=adjust_bias", f"run={student}", "classes=[0,3]", f"outputs={tmp_path}"]) == 0
    ((adjusted, record),) = records(tmp_path, "adjust_bias")
    results = record["results"]
    assert results["validation"]["best"]["errors"] <= results["validation"]["before"]["errors"]
    grown = results["test"]["best"]["errors_of_classes"] - results["test"]["before"]["errors_of_classes"]
    assert grown * np.sign(results["shift"]) <= 0
    assert results["test"]["before"]["errors"] == before["results"]["test"]["best"]["errors"]
    old, new = weights(student), weights(adjusted)
    moved = {name: new[name] - value for name, value in old.items() if not np.array_equal(value, new[name])}
    (difference,) = moved.values()
    assert results["shift"] != 0
    np.testing.assert_allclose(difference, results["shift"] * np.isin(np.arange(10), [0, 3]), atol=1e-5)
    assert main(["stage=evaluate", f"run={adjusted}", f"outputs={tmp_path}"]) == 0
    teach = ["teacher.overlap=allow", *NETS, *TINY, f"teacher.run={adjusted}", f"outputs={tmp_path}"]
    assert main(teach) == 0


def test_best_shift_has_the_fewest_errors_of_all():
    random = np.random.default_rng(0)
    for classes in ([3], [0, 4], [1, 2, 3, 4]):
        z, labels = random.normal(size=(60, 5)).round(1), random.integers(5, size=60)  # rounded: margins that are equal
        z[:, classes] += random.normal()

        def errors(shift, z=z, labels=labels, classes=classes):
            return np.sum((z + shift * np.isin(np.arange(5), classes)).argmax(axis=1) != labels)

        assert errors(best_shift(z, labels, classes)) == min(errors(shift) for shift in np.arange(-8, 8, 0.025))


def test_a_fraction_is_of_every_class_and_drawn_by_the_seed():
    data = {"name": "mnist", "validation_size": 1000, "train_size": None, "test_size": None}
    whole = datasets.load(data).train
    first, again, other = (datasets.load(data | {"train_fraction": 0.03}, seed).train for seed in (1, 1, 2))
    counts = np.bincount(whole.labels)
    np.testing.assert_array_equal(np.bincount(first.labels), np.round(0.03 * counts))
    assert first.images.tobytes() == again.images.tobytes()
    assert first.images.tobytes() != other.images.tobytes()
    two = datasets.load(data | {"include_classes": [7, 8, 1], "exclude_classes": [1]}).train
    assert sorted(np.unique(two.labels)) == [7, 8]
    assert len(two.labels) == counts[7] + counts[8]
    assert two.images.tobytes() == whole.images[np.isin(whole.labels, [7, 8])].tobytes()
    everything = datasets.load(data | {"train_on_validation": True})
    assert len(everything.train.labels) == 60000
    assert everything.train.images[:1000].tobytes() == everything.validation.images.tobytes()


def test_max_norm_keeps_incoming_weights_short(tmp_path):
    given = ["stage=teacher", *NETS, *TINY, "teacher.epochs=3", "optimizer.learning_rate=0.02"]
    longest = {}
    for limit in ("1.5", "null"):
        assert main([*given, f"teacher.model.max_norm={limit}", f"outputs={tmp_path / limit}"]) == 0
        ((run_dir, _),) = records(tmp_path / limit, "teacher")
        kernels = [value for value in weights(run_dir).values() if value.shape == (784, 40)]
        longest[limit] = max(np.linalg.norm(kernel, axis=0).max() for kernel in kernels)
    assert longest["1.5"] <= 1.5 * (1 + 1e-6)
    assert longest["null"] > 1.6


def test_patience_ends_training_early(tmp_path, capsys):
    given = ["stage=student", *NETS, *TINY, "epochs=40", "optimizer.learning_rate=0.05", "patience=2"]
    assert main([*given, f"outputs={tmp_path}"]) == 0
    ((_, record),) = records(tmp_path, "student")
    best, last = (record["results"]["validation"][which]["epoch"] for which in ("best", "last"))
    assert last == best + 2 < 40
    assert record["results"]["steps"] == 5 * last
    assert f"ending early: no lower validation cross-entropy than epoch {best}'s in 2 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data.exclude_classes=[10]"], "there is no class 10"),
        (["data.include_classes=[3]", "data.exclude_classes=[3]"], "no class to learn from"),
        (["patience=3", "data.train_on_validation=true"], "patience=3 waits for validation"),
        (["data.train_fraction=0"], "data.train_fraction must be a number"),
        (["stage=generations", "data.train_fraction=0.5"], "data.train_fraction would draw other images"),
        (["stage=cache", "data.augment.jitter=30"], "out of sight"),
        (["student.augment.jitter=30"], "out of sight"),
        (["stage=adjust_bias", "run=nowhere", "classes=[1]"], "nowhere is not a run directory"),
        (["stage=specialists", "run=nowhere"], "nowhere is not a run directory"),
    ],
)
def test_what_cannot_be_is_refused(given, said, tmp_path, capsys):
    assert main([*NETS, *TINY, *given, f"outputs={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("classes", [[11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_classes_to_adjust_must_be_some_and_not_all(classes, one_class_left_out, tmp_path, capsys):
    (student, _), *_ = records(one_class_left_out, "student")
    assert main(["stage=adjust_bias", f"run={student}", f"classes={classes}", f"outputs={tmp_path}"]) == 2
    assert "classes=" in capsys.readouterr().err


def test_combined_is_nearest_to_all_who_were_asked():
    """Against a general minimiser of KL(p | q) + sum of KL(p_m | q) over q's logits, for overlapping specialists."""
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(6), size=5)
    given = [([0, 1, 2], random.dirichlet(np.ones(4), size=5)), ([2, 3], random.dirichlet(np.ones(3), size=5))]
    found = combined(np.log(p), [(classes, np.log(p_m)) for classes, p_m in given])
    for row in range(5):
        asked = [(classes, p_m[row]) for classes, p_m in given if p[row].argmax() in classes]

        def distance(z, row=row, asked=asked):
            q = np.exp(z - np.logaddexp.reduce(z))
            total = np.sum(p[row] * np.log(p[row] / q))
            for classes, p_m in asked:
                grouped = np.append(q[classes], 1 - q[classes].sum())
                total += np.sum(p_m * np.log(p_m / grouped))
            return total

        best = optimize.minimize(distance, np.log(p[row]), tol=1e-12)
        np.testing.assert_allclose(found[row], np.exp(best.x - np.logaddexp.reduce(best.x)), atol=1e-5)
        if not asked:
            np.testing.assert_allclose(found[row], p[row])


def test_combined_of_networks_that_are_certain():
    """Nothing is lost where no probability is left for the others, whatever the number of rounds."""
    z = np.array([[100.0, 0, 0, 0], [100.0, 99, 0, 0]])
    log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    of_two = np.array([[0.0, 100, -100], [0.0, 3, -100]])
    of_two -= np.logaddexp.reduce(of_two, axis=1, keepdims=True)
    found = combined(log_p, [([0, 1], of_two)])
    # without a third class in play, q is the mean of the two
    np.testing.assert_allclose(found[:, :2], (np.exp(log_p[:, :2]) + np.exp(of_two[:, :2])) / 2, atol=1e-9)
    assert found[:, 2:].max() < 1e-9


def test_a_teacher_that_saw_all_images_goes_on_under_the_keys_it_began_with(tmp_path, capsys):
    keys = [*TINY, "data.train_fraction=0.5", "teacher.augment.jitter=1", f"outputs={tmp_path}"]
    assert main(["stage=teacher", *NETS, *keys]) == 0
    ((run_dir, record),) = records(tmp_path, "teacher")
    stopped = json.dumps(sealed({**record, "status": "interrupted"}))
    (run_dir / "run.json").write_text(stopped)
    assert main([*keys, "teacher.augment.jitter=2", f"resume={run_dir}"]) == 2
    assert "jitter cannot change" in capsys.readouterr().err
    assert main([*keys, f"resume={run_dir}"]) == 0
    assert records(tmp_path, "teacher")[0][1]["resumed"]


def test_confusable_classes_are_those_held_possible_together():
    logits = np.full((40, 6), -9.0)
    for image in range(40):
        pair = [(0, 4), (1, 5), (2, 2), (3, 3)][image % 4]
        logits[image, list(pair)] = 0.0
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    assert confusable(log_p, 4) == [[0, 4], [1, 5]]


def test_specialists_are_told_apart_by_what_they_saw(tmp_path):
    given = [*NETS, *TINY, "stage=specialists", "teacher.epochs=4", "clusters=4", "specialist.batch_size=50"]
    assert main([*given, f"outputs={tmp_path}"]) == 0
    ((_, record),) = records(tmp_path, "specialists")
    results, labels = record["results"], np.load(Path(datasets.__file__).with_name("mnist.npz"))["y_train"][100:600]
    assert results["generalist"]["test"]["count"] == results["combined"]["test"]["count"] == 200
    for each in results["specialists"]:
        ours = np.isin(labels, each["classes"]).sum()
        others = min(ours, 500 - ours)
        assert each["dustbin_shift"] == pytest.approx(np.log((500 - ours) / others))
        trained = json.loads((Path(each["run"]) / "run.json").read_text())
        assert trained["num_classes"] == len(each["classes"]) + 1
        assert trained["results"]["steps"] == -(-(ours + others) // 50)
