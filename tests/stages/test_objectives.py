"""Objectives, teachers and schedules through the command line, on real MNIST cut small."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from held import bits
from made import done, lines

from kdrun.cli.compose import config_dir
from kdrun.cli.main import main
from kdrun.config import schema as rules
from kdrun.runs import record as runs
from kdrun.runtime import tensorflow as startup
from kdrun.storage import files

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.data import batches, datasets  # noqa: E402
from kdrun.data.augmentation import Augmentation  # noqa: E402
from kdrun.data.preparation import Preparation  # noqa: E402
from kdrun.models import build as models  # noqa: E402
from kdrun.objectives import logits as soft_targets  # noqa: E402
from kdrun.teachers import checkpoint  # noqa: E402
from kdrun.training import execute, network, supervision  # noqa: E402
from kdrun.training.settings import Annealed, Settings  # noqa: E402

SMALL = ["data.train_size=320", "data.validation_size=200", "data.test_size=200", "data.image_size=28", "epochs=2"]
SMALL += ["batch_size=64", "tensorboard.histograms=false", "measure_latency=false", "optimizer=adam"]
SMALL += ["model@teacher.model=convnet", "teacher.model.filters=[4,8]"]
CONVNET = ["model@student.model=convnet", "student.model.filters=[3,6]"]
DENSE = ["model@student.model=densenet", "student.model.blocks=[1,1]", "student.model.growth_rate=4"]
OBJECTIVES = sorted(path.stem for path in (config_dir() / "objective").glob("*.yaml") if path.stem != "own")


def refused(capsys, *arguments) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main([*arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("kdrun: ")
    return said


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("objectives")


@pytest.fixture(scope="module")
def teacher(outputs) -> Path:
    return done(outputs, *SMALL, "stage=teacher")


@pytest.fixture(scope="module")
def data(teacher) -> datasets.Dataset:
    return datasets.load(runs.read(teacher)["config"]["data"])


@pytest.fixture(scope="module")
def distilled(outputs, teacher) -> Path:
    return done(outputs, *SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}")


@pytest.mark.slow
def test_every_objective_distils_and_logs_itself_and_leaves_the_teacher_and_the_student_as_they_are(outputs, teacher):
    weights = files.sha256(teacher / checkpoint.WEIGHTS)
    command = ["-m", *SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}", "sweep=all"]
    assert main([*command, f"objective={','.join(OBJECTIVES)}", f"outputs={outputs}"]) == 0
    found = {
        path.parent.name.removeprefix("objective-").rpartition("-")[0]: path.parent
        for path in outputs.glob("sweeps/all/*/run.json")
    }
    assert sorted(found) == OBJECTIVES
    students = {}
    for name, run_dir in found.items():
        (term,), alpha = runs.read(run_dir)["config"]["objective"], lines(run_dir)[0]["alpha"]
        for line in lines(run_dir):
            weight = runs.read(run_dir)["config"]["objective"][term]["weight"]
            assert np.isfinite(line[term])
            if "warmup" not in name and name not in ("dkd", "review"):
                assert line["distillation_loss"] == pytest.approx(weight * line[term], rel=1e-5)
                total = (1 - alpha) * line["cross_entropy"] + alpha * line["distillation_loss"]
                assert line["loss"] == pytest.approx(total, rel=1e-5)
        students[name] = runs.read(run_dir)["parameters"]
    assert {students[name]["total"] for name in OBJECTIVES if name != "simkd"} == {students["kd"]["total"]}
    assert {name for name in OBJECTIVES if students[name]["objectives"]} == {
        "contrastive",
        "fitnet",
        "review",
        "variational",
    }
    assert files.sha256(teacher / checkpoint.WEIGHTS) == weights


@pytest.mark.slow
def test_projections_move_and_a_live_teachers_batch_norm_does_not(outputs, tmp_path):
    plain = [word for word in SMALL if "teacher" not in word]
    dense = done(outputs, *plain, "stage=teacher", *(word.replace("student", "teacher") for word in DENSE))
    layers = "objective.fitnet.layers=[block1:block2,embedding]"
    arguments = [*SMALL, *DENSE, "student.model.growth_rate=3", "stage=distill", "objective=fitnet", layers]
    network.release()
    done(outputs, *arguments, f"teacher.run={dense}")
    (kept,) = (program.network for program in network._built.values())
    before, after = kept.learned.initial(42), [variable.numpy() for variable in kept.learned.variables]
    assert len(after) == 4 and all(np.any(a != b) for a, b in zip(before, after, strict=True))
    asked = kept.supervision.source.forward.__closure__  # the networks that the step has asked all along
    teachers = [cell.cell_contents for cell in asked if hasattr(cell.cell_contents, "layers")]
    expected = checkpoint.load(dense, "float32").get_weights()
    for live in teachers:
        assert all(np.array_equal(a, b) for a, b in zip(live.get_weights(), expected, strict=True))
    assert teachers


@pytest.mark.slow
def test_kept_features_are_the_live_teachers(outputs, teacher):
    command = [*SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}", "objective=[kd,attention]"]
    command += ["teacher.inference_batch_size=64"]
    live, kept = (done(outputs, *command, f"teacher.cache_features={on}") for on in ("false", "true"))
    assert len(list((outputs / ".cache/teachers").glob("*/validation.npy"))) < len(
        list((outputs / ".cache/teachers").glob("*/train.npy"))
    )
    for one, other in zip(lines(live), lines(kept), strict=True):
        assert one["attention"] == pytest.approx(other["attention"], rel=1e-4)


def test_a_file_of_logits_teaches_as_the_run_that_it_is_of(outputs, teacher, distilled, data, tmp_path):
    logits = {}
    model = checkpoint.load(teacher, "float32")
    for split in ("train", "validation", "test"):
        images = getattr(data, split).images.astype(np.float32) / 255
        logits[split] = model.predict(images, batch_size=64, verbose=0)
    np.savez(tmp_path / "logits.npz", order=datasets.order(data), **logits)
    taught = done(outputs, *SMALL, *CONVNET, "stage=distill", f"teacher.logits={tmp_path}/logits.npz")
    for one, other in zip(lines(taught), lines(distilled), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert runs.read(taught)["teachers"][0]["weights_sha256"] == files.sha256(tmp_path / "logits.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"train": np.zeros((319, 10), np.float32)},
            "train is float32 [319, 10]; it must be floats of shape [320, 10]",
        ),
        ({"test": np.full((200, 10), np.nan, np.float32)}, "test is not all finite"),
        ({"validation": np.zeros((200, 10), np.int32)}, "validation is int32"),
        ({"order": "0" * 64}, "of other images, or of these in another order"),
        ({"order": None}, "has no order"),
        ({"train": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_a_file_of_logits_that_does_not_fit_is_refused(change, said, data, tmp_path, capsys):
    sizes = {"train": 320, "validation": 200, "test": 200}
    arrays = {split: np.zeros((n, 10), np.float32) for split, n in sizes.items()} | {"order": datasets.order(data)}
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    np.savez(tmp_path / "l.npz", **arrays)
    command = [*SMALL, *CONVNET, "stage=distill", f"teacher.logits={tmp_path}/l.npz", f"outputs={tmp_path}"]
    assert said in refused(capsys, *command)
    assert not list(tmp_path.glob("distill/*"))


def test_several_teachers_that_are_one_teach_as_that_one(outputs, teacher, distilled, tmp_path):
    twin = shutil.copytree(teacher, tmp_path / "twin")
    for combine in ("probabilities", "logits"):
        command = [f"teacher.run=[{teacher},{twin}]", f"teacher.combine={combine}", "teacher.weights=[3,1]"]
        both = done(outputs, *SMALL, *CONVNET, "stage=distill", *command)
        for one, other in zip(lines(both), lines(distilled), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert len(runs.read(both)["teachers"]) == 2


@pytest.mark.slow
def test_a_sweeps_name_is_all_its_runs_as_teachers(outputs, tmp_path):
    assert (
        main(["-m", *SMALL, "epochs=1", *CONVNET, "stage=student", "seed=1,2", "sweep=peers", f"outputs={outputs}"])
        == 0
    )
    taught = done(outputs, *SMALL, *CONVNET, "stage=distill", "teacher.run=peers")
    names = {Path(teacher["run"]).parent.name for teacher in runs.read(taught)["teachers"]}
    assert names == {"peers"} and len(runs.read(taught)["teachers"]) == 2


def test_values_are_annealed_and_logged(outputs, teacher):
    command = [*SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}", "temperature=8", "temperature_end=2"]
    command += ["alpha=0.2", "alpha_end=0.8", "objective.kd.weight=3", "objective.kd.weight_end=1"]
    linear = done(outputs, *command, "objective.kd.warmup_epochs=2", "annealing=linear")
    cosine = done(outputs, *command, "annealing=cosine")
    for run_dir in (linear, cosine):
        for epoch, line in enumerate(lines(run_dir), start=1):
            progress = (5 * epoch - 1) / 9  # of ten steps, the last of each epoch
            if run_dir == cosine:
                progress = (1 - np.cos(np.pi * progress)) / 2
            warm = epoch / 2 if run_dir == linear else 1.0
            assert line["temperature"] == pytest.approx(8 - 6 * progress, rel=1e-6)
            assert line["alpha"] == pytest.approx(0.2 + 0.6 * progress, rel=1e-6)
            assert line["weight/kd"] == pytest.approx((3 - 2 * progress) * warm, rel=1e-6)


def test_an_objective_of_the_users_own_in_ten_lines(outputs, teacher, tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs/objectives.md").read_text()
    code = page.split("`my_objective.py`:\n```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "my_objective.py").write_text(code)
    command = [*SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}"]
    chosen = [f"plugins=[{tmp_path}/my_objective.py]", "objective=margins"]
    own = done(outputs, *command, *chosen, "objective.margins.power=2", "objective.margins.layers=[embedding]")
    assert all(line["margins"] > 0 for line in lines(own))
    identity = runs.read(own)["identity"]
    assert identity["code"]["objective/margins"] == files.sha256(tmp_path / "my_objective.py")
    assert identity["objective"]["margins"]["power"] == 2.0


def test_an_objectives_file_the_older_way(outputs, teacher, tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs/objectives.md").read_text()
    code = page.split("`my_objective.py`:\n```python\n")[1].split("```")[0]
    (tmp_path / "my_objective.py").write_text(code.replace('"margins"', '"own"'))
    chosen = ["objective=own", f"objective.module={tmp_path}/my_objective.py"]
    command = [*SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}"]
    own = done(outputs, *command, *chosen, "objective.own.weight=0.5")
    assert all(line["own"] > 0 for line in lines(own))
    identity = runs.read(own)["identity"]["objective"]
    assert identity["module"] == files.sha256(tmp_path / "my_objective.py")
    assert "is not a file" in refused(capsys, *command, "objective=own", "objective.module=nope.py")
    (tmp_path / "other.py").write_text("x = 1 / 0\n")
    said = refused(capsys, *command, "objective=own", f"objective.module={tmp_path}/other.py", f"outputs={tmp_path}")
    assert "ZeroDivisionError" in said
    assert "Add that" in refused(capsys, *command, "objective.module=nope.py")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["objective=fitnet", "objective.fitnet.layers=[block9]"],
            "the student has no layer block9. Allowed: conv1, conv2",
        ),
        (["objective=fitnet", "objective.fitnet.layers=[conv1:hidden1]"], "the teacher has no layer hidden1"),
        (["objective=attention", "objective.attention.layers=[embedding]"], "attention compares maps"),
        (["objective=null"], "objective=null: a choice cannot be null. Allowed: attention, contrastive"),
        (["objective=[]"], "objective must name at least one"),
        (["distill.mixup=1", "alpha=1", "objective=contrastive"], "objective=contrastive asks for one"),
        (["distill.cutmix=1", "objective=[kd,dkd]"], "distill.cutmix=1 mixes images, which then have two labels"),
        (["distill.cutmix=1", "teacher.cache=on"], "distill.cutmix=1 shows the student images that no kept answers"),
        (["objective=function_matching", "teacher.cache=on"], "no kept answers are of"),
        (["teacher.weights=[1,2]"], "must be one for each teacher, and there are 1"),
        (["teacher.shuffle=all", "teacher.cache=off"], "Set teacher.cache=on"),
        (["teacher.shuffle=all", "objective=fitnet"], "take an objective on logits"),
        (["objective.kd.weight=-1"], "objective.kd.weight must be a number of at least 0"),
        (["objective.kd.layers=[embedding]"], "objective.kd.layers: there is no such key"),
    ],
)
def test_what_cannot_be_is_refused(given, said, outputs, teacher, capsys):
    command = [*SMALL, *CONVNET, "stage=distill", f"outputs={outputs}"]
    command += [] if any(word.startswith("teacher.run") for word in given) else [f"teacher.run={teacher}"]
    assert said in refused(capsys, *command, *given)


def test_features_of_a_file_or_of_two_teachers_are_refused(outputs, teacher, data, tmp_path, capsys):
    sizes = {"train": 320, "validation": 200, "test": 200}
    logits = {split: np.zeros((n, 10), np.float32) for split, n in sizes.items()}
    np.savez(tmp_path / "l.npz", order=datasets.order(data), **logits)
    command = [*SMALL, *CONVNET, "stage=distill", f"outputs={outputs}"]
    for given in (["objective=fitnet"], ["student.classifier=teacher"]):
        assert "a file of logits cannot give" in refused(capsys, *command, *given, f"teacher.logits={tmp_path}/l.npz")
        assert "2 teachers cannot give" in refused(capsys, *command, *given, f"teacher.run=[{teacher},{teacher}]")
    said = refused(capsys, *command, f"teacher.logits={tmp_path}/l.npz", "data.augment.jitter=1")
    assert "augmentation shows others" in said
    said = refused(capsys, *command, f"teacher.logits={tmp_path}/l.npz", "data.augment.cutout=9")
    assert "augmentation shows others" in said


def test_two_classes_are_too_few_for_dkd(tmp_path, capsys):
    random = np.random.default_rng(0)
    arrays = {f"x_{split}": random.integers(0, 256, (n, 8, 8), np.uint8) for split, n in (("train", 60), ("test", 20))}
    np.savez(tmp_path / "two.npz", **arrays, y_train=np.arange(60) % 2, y_test=np.arange(20) % 2)
    command = ["data=npz", f"data.path={tmp_path}/two.npz", "data.image_size=8", "data.validation_size=20"]
    command += ["batch_size=10", "model@teacher.model=mlp", "model@student.model=mlp", f"outputs={tmp_path}"]
    assert "with 2 classes there is one" in refused(capsys, *command, "objective=dkd")


@pytest.mark.parametrize("how", ["none", "within_class", "all"])
def test_shuffled_answers_are_a_permutation_within_what_was_asked_for(how):
    labels = np.random.default_rng(1).integers(10, size=500)
    order = batches.shuffled(3, labels, how)
    assert sorted(order) == list(range(500))
    assert (order == np.arange(500)).all() == (how == "none")
    assert (labels[order] == labels).all() == (how != "all")
    if how != "none":
        assert np.mean(order == np.arange(500)) < 0.1
        assert (batches.shuffled(4, labels, how) != order).any()


def test_a_shuffled_teacher_gives_each_image_anothers_answer(outputs, teacher, distilled):
    command = [*SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}", "control=shuffled"]
    shuffled = done(outputs, *command)
    assert bits(shuffled)["predictions/test.npz"] != bits(distilled)["predictions/test.npz"]
    # the teacher's own logits on the test set are not: agreement is with what it really says
    record = runs.read(shuffled)
    logits = [np.load(run / "predictions/test.npz")["logits"].argmax(1) for run in (shuffled, teacher)]
    assert record["results"]["test"]["best"]["teacher_agreement"] == pytest.approx(np.mean(logits[0] == logits[1]))


@pytest.mark.slow
def test_generations_teach_each_other_and_go_on_where_they_were(tmp_path, capsys):
    command = [*SMALL, *CONVNET, "stage=generations"]
    assert main([*command, "generations=2", f"outputs={tmp_path}"]) == 0
    (first,) = tmp_path.glob("generations/*")
    results = runs.read(first)["results"]
    found = [Path(row["run"]) for row in results["generations"]]
    assert [runs.read(run)["stage"] for run in found] == ["student", "distill", "distill"]
    assert [runs.read(run)["seed"] for run in found] == [42, 42 + 2**24, 42 + 2 * 2**24]  # which no run beside it has
    for teacher, student in pairwise(found):
        assert runs.read(student)["teachers"][0]["run"] == str(teacher)
    logits = [np.load(run / "predictions/test.npz")["logits"].astype(np.float64) for run in found]
    mean = np.mean([np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in logits], axis=0)
    labels = np.load(found[0] / "predictions/test.npz")["labels"]
    assert results["ensemble"]["test"]["errors"] == np.count_nonzero(mean.argmax(axis=1) != labels)
    expected = -np.log(mean[np.arange(200), labels]).mean()
    assert results["ensemble"]["test"]["cross_entropy"] == pytest.approx(expected)
    capsys.readouterr()
    assert main([*command, "generations=3", f"outputs={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("reusing the completed run") == 3
    assert "taught by the one before" in refused(capsys, *command, "teacher.run=x", f"outputs={tmp_path}")


@pytest.mark.slow
def test_mixed_images_are_shown_to_both_and_never_twice_the_same(outputs, teacher):
    command = [*SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}", "objective=function_matching", "epochs=1"]
    one, again, other = (done(outputs, *command, f"distill.mixup={mixup}") for mixup in ("1", "1.0", "0.2"))
    assert bits(one) == bits(again) and bits(one)["predictions/test.npz"] != bits(other)["predictions/test.npz"]
    shares = batches.shares(1, 0, 4000, 0.4)
    assert len(set(shares)) > 3900 and abs(shares.mean() - 0.5) < 0.03  # Beta(a, a): mean 1/2, variance 1/(8 a + 4)
    assert shares.var() == pytest.approx(1 / (8 * 0.4 + 4), rel=0.1)
    assert (batches.shares(1, 3, 1, 0.4) == shares[3:4]).all()


def test_peers_learn_from_each_other(tmp_path, capsys):
    command = [*SMALL, *CONVNET, "stage=mutual", "distill.peers=2", f"outputs={tmp_path}"]
    network.release()
    assert main([*command]) == 0
    (kept,) = (program.network for program in network._built.values())
    (run_dir,) = tmp_path.glob("distill/*")
    record = runs.read(run_dir)
    assert record["teachers"] == [] and len(record["results"]["peers"]) == 2
    assert len(list((run_dir / "checkpoints").glob("peer*.weights.h5"))) == 2
    assert record["parameters"]["total"] == kept.model.count_params()  # the student's alone
    for model in (kept.model, *kept.peers):
        first = models.build(record["model"], (28, 28, 1), 10, 42, "float32").get_weights()
        assert all(np.any(a != b) for a, b in zip(model.get_weights(), first, strict=True))
    assert all(line["kd"] > 0 for line in lines(run_dir))
    assert main(["stage=evaluate", f"run={run_dir}", f"outputs={tmp_path}"]) == 0
    for given in ("objective=fitnet", "teacher.run=x", "distill.mixup=1"):
        assert "learn from the labels and each other" in refused(capsys, *command, given)


def test_a_step_of_peers_is_that_of_the_formula():
    """Of two linear networks, by SGD: each goes down its own loss, with the other's probabilities as constants."""
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)
    labels = np.arange(8, dtype=np.int32) % 3
    keys = {"hidden_units": [], "input_dropout": 0.0, "hidden_dropout": 0.0}
    sgd = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    sgd |= {"schedule": "constant", "warmup_epochs": 0.0}

    def build(seed):
        return models.build({"name": "mlp", **keys}, (2, 2, 1), 3, seed, "float32")

    def objective(batch):
        return soft_targets.kd(batch, scale_by_temperature_squared=True, standardise_logits=False)

    peers = supervision.Peers(1, supervision.decoder(lambda logits, temperature: logits[0], 1, ()))
    learned_from = supervision.Supervision({"kd": objective}, source=peers, training_size=8)
    made = network.Network(build, 1, sgd, False, learned_from)
    settings = Settings(1, 1, 8, Preparation(2), Augmentation(), sgd, Annealed(2.0), Annealed(0.25), [Annealed(1.0)])
    before = [[w.astype(np.float64) for w in m.get_weights()] for m in (made.model, *made.peers)]
    steps = execute.compiled_steps([made], datasets.Split(images, labels), settings)
    indices = np.arange(8, dtype=np.int32)[np.newaxis]
    values, draws = np.array([[0.5, 2.0, 0.25, 1.0]], np.float32), np.zeros((1, 2), np.int32)
    steps(indices, 0 * indices, values, np.ones((1, 5), np.float32), draws, {}, ())
    x, one_hot = images.reshape(8, 4) / 255, np.eye(3)[labels]

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)

    z = [x @ kernel + bias for kernel, bias in before]
    for own, other, model, (kernel, bias) in zip(z, z[::-1], (made.model, *made.peers), before, strict=True):
        # d CE / dz = softmax(z) - y; d T^2 KL / dz = T (softmax(z/T) - softmax(v/T)); T = 2, alpha = 1/4
        slope = (0.75 * (softmax(own) - one_hot) + 0.25 * 2 * (softmax(own / 2) - softmax(other / 2))) / 8
        np.testing.assert_allclose(model.get_weights()[0], kernel - 0.5 * x.T @ slope, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(model.get_weights()[1], bias - 0.5 * slope.sum(axis=0), rtol=1e-5, atol=1e-7)


def test_an_objective_gets_the_labels_of_the_batch_and_of_all_training_images():
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)
    labels = np.array([2, 0, 1, 1, 0, 2, 0, 1], np.int32)
    sgd = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    sgd |= {"schedule": "constant", "warmup_epochs": 0.0}

    def build(seed):
        keys = {"hidden_units": [], "input_dropout": 0.0, "hidden_dropout": 0.0}
        return models.build({"name": "mlp", **keys}, (2, 2, 1), 3, seed, "float32")

    def digits(batch):  # the labels themselves, as the digits of a number of the base three
        places = 3 ** tf.range(tf.size(batch.training_labels))
        return tf.cast(tf.reduce_sum(batch.training_labels * places), tf.float32)

    def of_the_batch(batch):
        same = tf.gather(batch.training_labels, batch.indices) == batch.labels
        return tf.cast(tf.reduce_all(same), tf.float32)

    objectives = {"digits": digits, "of_the_batch": of_the_batch}
    made = network.Network(build, 1, sgd, False, supervision.Supervision(objectives, training_size=8))
    weights = [Annealed(1.0)] * 2
    settings = Settings(1, 1, 3, Preparation(2), Augmentation(), sgd, Annealed(2.0), Annealed(0.25), weights)
    steps = execute.compiled_steps([made], datasets.Split(images, labels), settings)
    indices = np.array([[5, 0, 2], [7, 1, 3]], np.int32)
    values, draws = np.array([[0.5, 2.0, 0.25, 1.0, 1.0]] * 2, np.float32), np.zeros((2, 2), np.int32)
    rows = steps(indices, 0 * indices, values, np.zeros((2, 5), np.float32), draws, {}, ()).numpy()
    assert rows[:, -2].tolist() == [np.sum(labels * 3 ** np.arange(8))] * 2
    assert rows[:, -1].tolist() == [1.0, 1.0]


def test_simkds_student_has_the_teachers_classifier_and_can_be_evaluated(outputs, teacher):
    student = done(outputs, *SMALL, *CONVNET, "stage=distill", f"teacher.run={teacher}", "objective=simkd")
    model = checkpoint.load(student, "float32")
    theirs = checkpoint.load(teacher, "float32").get_layer("classifier").get_weights()
    for one, other in zip(model.get_layer("classifier").get_weights(), theirs, strict=True):
        assert np.array_equal(one, other)
    counted = runs.read(student)["parameters"]
    assert counted["total"] - counted["trainable"] == sum(array.size for array in theirs)
    assert main(["stage=evaluate", f"run={student}", f"outputs={outputs}"]) == 0


def test_an_objective_without_a_teacher_needs_none(tmp_path):
    run_dir = done(tmp_path, *SMALL, *CONVNET, "stage=distill", "control=label_smoothing")
    record = runs.read(run_dir)
    assert record["teachers"] == [] and "teacher_agreement" not in record["results"]["test"]["best"]
    assert dict(rules.flatten(record["config"]))["alpha"] == 1.0
