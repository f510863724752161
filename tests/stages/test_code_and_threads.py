"""What a finished or an interrupted run is taken for again, and with what: code, threads, more epochs."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import identities
import numpy as np
import pytest
from held import bits
from identities import TRAINING

import kdrun
from kdrun.cli.compose import config_dir
from kdrun.cli.main import main
from kdrun.runs import record as runs
from kdrun.runs.identity import FORMAT, fingerprint
from kdrun.runtime import tensorflow as startup
from kdrun.storage.manifest import sealed

startup.load_tensorflow()

from kdrun.training import network  # noqa: E402

TINY = ["data.image_size=8", "data.train_size=320", "data.validation_size=64", "data.test_size=64", "batch_size=32"]
TINY += ["model@teacher.model=mlp", "teacher.model.hidden_units=[16]", "measure_latency=false", "optimizer=adam"]
TINY += ["model@student.model=mlp", "student.model.hidden_units=[8]", "tensorboard.histograms=false", "epochs=2"]
TINY += ["optimizer.learning_rate=2e-2"]


def only(outputs: Path, stage: str) -> Path:
    (run_json,) = outputs.glob(f"{stage}/*/run.json")
    return run_json.parent


def alone(command: list, folder: Path, **environment) -> subprocess.CompletedProcess:
    """A command in a process of its own."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **environment}
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The outputs of a teacher and a student."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    for stage in ("teacher", "student"):
        network.release()
        assert main([*TINY, f"stage={stage}", f"outputs={outputs}"]) == 0
    return outputs


# Code


@pytest.fixture
def another_kdrun(tmp_path):
    """A copy of the package, to be edited: a function that replaces text in one of its files."""
    package = Path(kdrun.__file__).parent
    ignored = shutil.ignore_patterns("mnist.npz", "__pycache__", "conf")
    shutil.copytree(package, tmp_path / "copy/kdrun", ignore=ignored)
    shutil.copytree(config_dir(), tmp_path / "copy/conf")
    (tmp_path / "copy/kdrun/data/mnist.npz").symlink_to(package / "data/mnist.npz")

    def edit(name: str, old: str, new: str) -> None:
        path = tmp_path / "copy/kdrun" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


@pytest.mark.slow
def test_an_edited_net_trains_again_and_an_edited_comment_does_not(another_kdrun, tmp_path):
    def again() -> str:
        ended = alone(["-m", *TINY, "epochs=1", "stage=student", "sweep=s"], tmp_path, PYTHONPATH=tmp_path / "copy")
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "is completed already" not in again()
    another_kdrun("models/mlp.py", '"""Fully connected networks', '# a comment\n"""Nets, fully connected')
    said = again()
    assert "is completed already\n" in said
    another_kdrun("reports/tables.py", '"accuracy"', '"right"')
    assert "is completed already, made by other code of kdrun" in again()
    another_kdrun("models/mlp.py", 'activation="relu"', 'activation="tanh"')
    assert "is completed already" not in again()


@pytest.mark.slow
def test_an_edited_nets_answers_are_asked_for_again(another_kdrun, trained, tmp_path):
    def again() -> bool:
        command = [*TINY, "stage=cache", f"teacher.run={only(trained, 'teacher')}", "cache_dir=kept"]
        ended = alone(command, tmp_path, PYTHONPATH=tmp_path / "copy")
        assert ended.returncode == 0, ended.stderr
        return "asking the teacher" in ended.stdout

    assert [again(), again()] == [True, False]
    another_kdrun("models/mlp.py", 'activation="relu"', 'activation="tanh"')
    assert again()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("models/mlp.py", {"teacher", "student", "distill"}),
        ("optimizers/elementwise.py", {"teacher", "student", "distill"}),
        ("data/datasets.py", {"teacher", "student", "distill"}),
        ("data/batches.py", {"teacher", "student", "distill"}),
        ("data/splits.py", {"teacher", "student", "distill"}),
        ("data/npz.py", set()),  # what it has read has a sum of its own
        ("objectives/logits.py", {"distill"}),
        ("models/densenet.py", set()),
        ("objectives/relations.py", set()),
        ("reports/tables.py", set()),
    ],
)
def test_what_code_a_stages_identity_holds(another_kdrun, tmp_path, name, stages):
    """Fingerprints before and after a statement is added to a module, in processes that import it anew."""
    script = f"""
import json, identities
from kdrun.runs.identity import fingerprint
config = identities.composed(*{TINY!r})
print(json.dumps({{s: fingerprint(identities.of(config, s, "data")) for s in identities.TRAINING}}))
"""

    def fingerprints() -> dict:
        ended = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'copy'}:{Path(identities.__file__).parent}"},
            capture_output=True,
        )
        return json.loads(ended.stdout)

    before = fingerprints()
    another_kdrun(name, "\n\n\n", "\n\n\nADDED = 1\n\n\n")
    after = fingerprints()
    assert {stage for stage in TRAINING if before[stage] != after[stage]} == stages


def test_runs_of_an_older_kdrun_are_read_compared_evaluated_and_teach_and_are_not_reused(trained, tmp_path, capsys):
    outputs = tmp_path / "outputs"
    shutil.copytree(trained, outputs)
    for stage in ("teacher", "student"):
        run_dir = only(outputs, stage)
        record = json.loads((run_dir / "run.json").read_text())
        record["identity"]["format"] = FORMAT - 1
        del record["identity"]["code"], record["kdrun"], record["threads"]
        record["fingerprint"] = fingerprint(record["identity"])
        (run_dir / "run.json").write_text(json.dumps(sealed(record)))
    old = only(outputs, "teacher")
    assert main(["stage=evaluate", f"run={old}", f"outputs={outputs}"]) == 0
    assert main([*TINY, "stage=distill", "epochs=1", f"teacher.run={old}", f"outputs={outputs}"]) == 0
    capsys.readouterr()
    assert main(["stage=compare", f"runs={outputs}", f"outputs={tmp_path}"]) == 0
    assert "not used" not in capsys.readouterr().out
    table = (only(tmp_path, "compare") / "comparison.md").read_text()
    assert f"format {FORMAT - 1}" in table and f" {kdrun.__version__} " in table
    assert main([*TINY, "stage=distill", f"outputs={outputs}"]) == 2
    assert "no completed teacher run" in capsys.readouterr().err


STOPS = '''
import os, signal
import tensorflow as tf
from kdrun.registry import register


@register("objective", "own")
def own(batch, *, layers):
    """Says with how many threads it was compiled; stops the run at once, where it is told to."""
    if not tf.executing_eagerly():
        with open("threads", "a") as file:
            count = tf.config.threading.get_intra_op_parallelism_threads()
            file.write(f"{count or len(os.sched_getaffinity(0))} ")  # 0: as many as there are cores
        if os.environ.get("STOP"):
            os.kill(os.getpid(), signal.SIGTERM)
    return tf.reduce_mean((batch.logits - batch.teacher_logits) ** 2)
'''


@pytest.fixture(scope="module")
def stopped(trained, tmp_path_factory):
    """A folder with a run that uses a file of code, and began with one thread; stopped before its first step."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "own.py").write_text(STOPS)
    shutil.copytree(trained, folder / "outputs")
    own = ["stage=distill", "objective=own", "objective.module=own.py", "threads=1"]
    ended = alone([*TINY, *own], folder, STOP="1")
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    return folder, Path("outputs/distill") / only(folder / "outputs", "distill").name


NAMED = ["objective=own", "objective.module=own.py"]


def test_resume_runs_no_code_that_the_command_line_does_not_name(stopped, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(stopped[0], folder)
    (folder / "own.py").write_text("open('ran', 'w')\n" + STOPS)
    for given, said in (
        ([], "uses code of the user's own, own.py"),
        (["objective=own"], "objective.module must be given"),
        (NAMED, "objective.module=own.py is not the file"),
        (["objective=own", "objective.module=nowhere.py"], "nowhere.py"),
    ):
        ended = alone([f"resume={stopped[1]}", *given], folder)
        assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert not (folder / "ran").exists()


@pytest.mark.slow
def test_a_resumed_run_has_the_threads_that_it_began_with(stopped, tmp_path):
    folder, run_dir = stopped
    found = tmp_path / "found"
    shutil.copytree(folder, found)
    ended = alone([*TINY, "stage=distill", *NAMED, "resume=auto"], found)
    assert ended.returncode == 0 and runs.read(found / run_dir)["status"] == "completed", ended.stderr
    assert set((found / "threads").read_text().split()) == {"1"}
    ended = alone([f"resume={run_dir}", *NAMED, "threads=2"], folder)
    assert ended.returncode == 2 and "threads cannot change in a run that goes on" in ended.stderr
    ended = alone([f"resume={run_dir}", *NAMED], folder)
    assert ended.returncode == 0, ended.stderr
    record = runs.read(folder / run_dir)
    assert record["status"] == "completed" and record["threads"] == 1
    assert set((folder / "threads").read_text().split()) == {"1"}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.slow
def test_the_number_of_threads_is_recorded_and_is_no_part_of_the_fingerprint(trained, tmp_path, threads):
    ended = alone([*TINY, "stage=student", f"threads={threads}", "outputs=out"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    record = runs.read(only(tmp_path / "out", "student"))
    assert record["threads"] == threads
    assert record["fingerprint"] == runs.read(only(trained, "student"))["fingerprint"]


# More epochs


def test_a_completed_run_grows_into_a_new_one(trained, tmp_path, capsys):
    outputs, constant = tmp_path / "outputs", ["optimizer.schedule=constant"]
    shutil.copytree(trained, outputs)
    old = only(outputs, "student")
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    network.release()
    assert main([f"resume={old}", f"outputs={outputs}", "epochs=4"]) == 0
    assert "with 2 epochs done" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    (new,) = set(outputs.glob("student/*")) - {old}
    network.release()
    assert main([*TINY, *constant, "stage=student", "epochs=4", f"outputs={tmp_path / 'whole'}"]) == 0
    whole = only(tmp_path / "whole", "student")
    assert bits(new) == bits(whole)
    record = runs.read(new)
    assert record["goes_on_from"] == {"run": str(old), "epochs": 2}
    assert record["fingerprint"] == runs.read(whole)["fingerprint"]
    capsys.readouterr()
    assert main([f"resume={old}", f"outputs={outputs}", "epochs=2"]) == 0  # nothing more
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [("epochs=1", "epochs can only grow"), ("alpha=0.5", "nothing left to do"), ("seed=7", "nothing left to do")],
)
def test_a_completed_run_does_not_grow_otherwise(trained, capsys, given, said):
    old = only(trained, "student")
    main([f"resume={old}", f"outputs={trained}", given])
    assert said in "".join(capsys.readouterr())
    assert len(list(trained.glob("student/*"))) == 1


def test_a_run_that_patience_ended_does_not_grow(tmp_path, capsys):
    harmful = ["optimizer=sgd", "optimizer.learning_rate=50", "epochs=6", "patience=1"]
    assert main([*TINY, *harmful, "stage=student", f"outputs={tmp_path}"]) == 0
    run_dir = only(tmp_path, "student")
    assert runs.read(run_dir)["results"]["validation"]["last"]["epoch"] < 6
    assert main([f"resume={run_dir}", f"outputs={tmp_path}", "epochs=9"]) == 2
    assert "ended early by patience=1" in capsys.readouterr().err


# Signals while it starts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_starts_leaves_nothing(tmp_path, number):
    """TensorFlow takes seconds to load, and the run directory is made before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kdrun", *TINY, "stage=student", "outputs=out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not glob.glob(f"{tmp_path}/out/student/*-*-*"):  # which is not in the way of folders that go again
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, f"kdrun: Stopped by {number.name}.\n")
    assert os.listdir(tmp_path) == []


# Other data


def test_evaluate_measures_on_other_data_and_leaves_the_run_alone(trained, tmp_path, capsys):
    from kdrun.data import datasets

    student = only(trained, "student")
    before = (student / "run.json").read_bytes()
    mnist = {"name": "mnist", "validation_size": 10, "train_size": None, "test_size": None}
    images, labels = datasets.load(mnist).test
    noise = np.random.default_rng(0).integers(0, 256, images[:50].shape, np.uint8)
    for name, x in (("same", images[:50]), ("noise", noise)):
        np.savez(tmp_path / name, x_train=x, y_train=labels[:50], x_test=x, y_test=labels[:50])
    accuracies = {}
    for name in ("same", "noise"):
        given = ["data=npz", f"data.path={tmp_path / name}.npz", f"outputs={tmp_path / name}"]
        assert main(["stage=evaluate", f"run={student}", *given]) == 0
        said = capsys.readouterr().out
        assert f"{name}.npz" in said and "errors of 50" in said and "as run.json says" not in said
        accuracies[name] = runs.read(only(tmp_path / name, "evaluate"))["results"]["best"]["accuracy"]
    with np.load(student / "predictions/test.npz") as saved:
        assert accuracies["same"] == np.mean(saved["logits"][:50].argmax(axis=1) == labels[:50])
    assert accuracies["noise"] < 0.3 < accuracies["same"]
    assert (student / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data.test_size=5"], "data.test_size=5: stage=evaluate takes the data of the run"),
        (["data=mnist", "data.image_size=28"], "data.image_size=28: the run's network sees images of 8"),
        (["data=mnist", "data.test_size=10001"], "data.test_size=10001 is more than there are"),
        (["data=npz", "data.path=colour.npz"], "3 channel(s)"),
        (["data=npz", "data.path=classes.npz"], "its labels go up to 11"),
        (["stage=adjust_bias", "classes=[3]", "data=mnist"], "stage=adjust_bias takes the data of the run"),
        (["stage=adjust_bias", "classes=[3]", "data.test_size=5"], "stage=adjust_bias takes the data of the run"),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_data_that_a_run_cannot_be_measured_on_are_refused(trained, tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.chdir(tmp_path)
    labels = np.arange(12)
    for name, shape in (("colour", (12, 8, 8, 3)), ("classes", (12, 8, 8))):
        x = np.full(shape, 7, np.uint8)
        y = labels if name == "classes" else labels % 3
        np.savez(name, x_train=x, y_train=y, x_test=x, y_test=y)
    assert main(["stage=evaluate", f"run={only(trained, 'student')}", *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("outputs").exists()


# Teachers


def test_what_cannot_fit_together_ends_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stops = STOPS.replace("return ", "return batch.nothing + ")
    (tmp_path / "own.py").write_text(stops)
    line = stops[: stops.index("batch.nothing")].count("\n") + 1
    for given, said, code in (
        (["objective=simkd", "objective.simkd.layers=[embedding]"], "simkd: layer embedding is [8]", 2),
        (["objective=own", "objective.module=own.py"], f"own.py, line {line}): AttributeError", 2),
    ):
        assert main([*TINY, *given, "student.classifier=own"]) == code
        assert said in capsys.readouterr().err
        assert os.listdir("outputs") == ["pipeline"]


@pytest.mark.slow
def test_a_teacher_that_saw_validation_images_is_told_of_wherever_its_student_is(trained, tmp_path, capsys):
    teacher, outputs = only(trained, "teacher"), f"outputs={tmp_path}"
    more = [*TINY, "data.validation_size=96", outputs]
    assert main([*more, "stage=distill", f"teacher.run={teacher}"]) == 2
    assert "has trained on 32 of the 96 images" in capsys.readouterr().err
    for seed in (0, 1):
        assert main([*more, "stage=student", "epochs=1", f"seed={seed}"]) == 0
        network.release()
        given = ["stage=distill", "epochs=1", f"teacher.run={teacher}", "teacher.overlap=allow"]
        assert main([*more, *given, f"seed={seed}"]) == 0
        network.release()
    said = capsys.readouterr().out
    assert "the teacher has trained on 32 of the student's validation images" in said
    assert {runs.read(path.parent)["overlap"] for path in tmp_path.glob("distill/*/run.json")} == {32}
    assert main(["stage=compare", f"runs={tmp_path}", outputs]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "its teacher has trained on 32 of the validation or test images" in said.partition("┏")[0]
    page = (only(tmp_path, "compare") / "report.html").read_text()
    assert "teacher saw 32 validation images" in page


def test_probabilities_are_learned_from_by_their_logarithm(tmp_path, capsys):
    from kdrun.data import datasets
    from kdrun.teachers import logits_file as file

    data = {"name": "mnist", "validation_size": 64, "train_size": 320, "test_size": 64}
    dataset, random = datasets.load(data), np.random.default_rng(0)
    order = datasets.order(dataset)
    logits = {split: random.normal(0, 3, (len(getattr(dataset, split).labels), 10)) for split in file.SPLITS}
    p = {split: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for split, z in logits.items()}
    for dtype in (np.float16, np.float32, np.float64):
        np.savez(tmp_path / "p.npz", order=order, **{split: each.astype(dtype) for split, each in p.items()})
        for split, found in file.logits(tmp_path / "p.npz", dataset).items():
            given = p[split].astype(dtype).astype(np.float64)
            np.testing.assert_allclose(np.exp(found.astype(np.float64)), given, rtol=1e-5, atol=1e-37)
    np.savez(tmp_path / "z.npz", order=order, **{split: np.log(each).astype(np.float32) for split, each in p.items()})
    held = []
    for name in ("p", "z"):
        network.release()
        out = tmp_path / name
        assert main([*TINY, "stage=distill", f"teacher.logits={tmp_path / name}.npz", f"outputs={out}"]) == 0
        assert ("their logarithm is taken" in capsys.readouterr().out) == (name == "p")
        held.append(bits(only(out, "distill")))
    assert held[0] == held[1]
    np.savez(tmp_path / "m.npz", order=order, **{**p, "test": logits["test"]})
    assert main([*TINY, "stage=distill", f"teacher.logits={tmp_path}/m.npz", f"outputs={tmp_path}/m"]) == 2
    assert "train, validation holds probabilities, and the other splits do not" in capsys.readouterr().err
