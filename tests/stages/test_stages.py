"""The stages through the command line, on MNIST cut small; one process, one pipeline shared by most tests."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdrun.cli.main import main
from kdrun.storage.manifest import sealed

SMALL = ["experiment=convnets", "epochs=3", "data.train_size=1280", "data.validation_size=256", "data.test_size=200"]


STATE = ("manifest.json", "variables.index", "variables.data-00000-of-00001", "best.weights.h5")


def run_dirs(outputs: Path, stage: str) -> list[Path]:
    return sorted(path.parent for path in outputs.glob(f"{stage}/*/run.json"))


def record_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def weights_of(run_dir: Path, name: str = "last") -> list[bytes]:
    import h5py

    arrays = []
    with h5py.File(run_dir / "checkpoints" / f"{name}.weights.h5") as file:
        file.visititems(lambda _, item: arrays.append(item[()].tobytes()) if hasattr(item, "dtype") else None)
    assert arrays
    return arrays


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, request):
    """A finished pipeline: its outputs folder, and what it printed."""
    outputs = tmp_path_factory.mktemp("pipeline") / "outputs"
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled(), (outputs.parent / "said").open("w+") as said:
        from contextlib import redirect_stdout

        with redirect_stdout(said):
            assert main([*SMALL, f"outputs={outputs}"]) == 0
        said.seek(0)
        return outputs, said.read()


@pytest.fixture(scope="module")
def trained(pipeline):
    outputs = pipeline[0]
    return {stage: run_dirs(outputs, stage)[0] for stage in ("teacher", "student", "distill", "pipeline")}


def test_a_run_directory_holds_what_the_design_lists(trained):
    for stage in ("teacher", "student", "distill"):
        files = {str(p.relative_to(trained[stage])) for p in trained[stage].rglob("*") if p.is_file()}
        events = {name for name in files if name.startswith("tensorboard/")}
        assert {name.split("/")[1] for name in events} == {"train", "validation", "test"}
        assert files - events == {
            ".hydra/config.yaml",
            ".lock",
            "kdrun.log",
            "run.json",
            "metrics.jsonl",
            "checkpoints/best.weights.h5",
            "checkpoints/last.weights.h5",
            "predictions/test.npz",
            *(f"checkpoints/state-{step}/{name}" for step in (20, 30) for name in STATE),
        }


def test_run_json_says_what_a_run_depended_on_and_came_to(trained):
    for stage in ("teacher", "student", "distill"):
        record = record_of(trained[stage])
        assert record["stage"] == stage
        assert record["status"] == "completed"
        assert re.fullmatch("[0-9a-f]{64}", record["fingerprint"])
        assert record["dataset_sha256"].startswith("ea302cb0a807")  # of MNIST's images and labels
        assert record["seed"] == 42
        assert record["started"] < record["finished"]
        assert set(record["packages"]) >= {"tensorflow", "tf-keras", "adabelief-tf", "numpy"}
        assert record["results"]["steps"] == 30
        assert record["results"]["test"]["best"]["count"] == 200
    assert [teacher["run"] for teacher in record["teachers"]] == [str(trained["teacher"])]
    assert record["parameters"]["total"] == 4266


def test_metrics_have_one_line_an_epoch_and_split_and_the_loss_halves(trained):
    for stage in ("teacher", "student", "distill"):
        lines = [json.loads(line) for line in (trained[stage] / "metrics.jsonl").read_text().splitlines()]
        assert [(line["epoch"], line["split"]) for line in lines] == [
            (epoch, split) for epoch in (1, 2, 3) for split in ("train", "validation")
        ]
        losses = [line["cross_entropy"] for line in lines if line["split"] == "validation"]
        assert losses[-1] < losses[0]
        assert ("teacher_agreement" in lines[1]) == (stage == "distill")
    teacher = [
        json.loads(line)["loss"] for line in (trained["teacher"] / "metrics.jsonl").read_text().splitlines()[::2]
    ]
    assert teacher[-1] < teacher[0] / 2


def test_predictions_give_the_recorded_metrics_and_agreement(trained):
    from kdrun.data import datasets

    labels = np.load(Path(datasets.__file__).with_name("mnist.npz"))["y_test"][:200]
    logits = {}
    for stage in ("teacher", "student", "distill"):
        with np.load(trained[stage] / "predictions" / "test.npz", allow_pickle=False) as saved:
            assert (saved["labels"] == labels).all()
            logits[stage] = saved["logits"]
            for name, z in (("best", saved["logits"]), ("last", saved["last_logits"])):
                said = record_of(trained[stage])["results"]["test"][name]
                assert said["errors"] == int((z.argmax(1) != labels).sum())
                p = np.exp(z.astype(np.float64))
                expected = -np.log(p[np.arange(200), labels] / p.sum(1)).mean()
                assert said["cross_entropy"] == pytest.approx(expected, rel=1e-9)
    rows = {row["stage"]: row for row in record_of(trained["pipeline"])["results"]["runs"]}
    for stage in ("student", "distill"):
        same = (logits[stage].argmax(1) == logits["teacher"].argmax(1)).mean()
        assert rows[stage]["teacher_agreement"] == same
    assert rows["student"]["teacher_agreement"] != rows["distill"]["teacher_agreement"]


def test_terminal_output_is_one_line_an_epoch_and_a_table(pipeline):
    said = pipeline[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", said)
    for stage in ("teacher", "student", "distill"):
        assert len(re.findall(rf"^{stage} epoch \d/3 ", said, re.MULTILINE)) == 3
    for expected in ("errors of 200", "student alone", "distilled student", "113,162", "agreement"):
        assert expected in said


def test_the_same_command_again_reuses_all_three_runs(pipeline, trained, capsys):
    outputs, _ = pipeline
    assert main([*SMALL, f"outputs={outputs}"]) == 0
    said = capsys.readouterr().out
    for stage in ("teacher", "student", "distill"):
        assert f"{stage}: reusing the completed run {trained[stage]}" in said
        assert run_dirs(outputs, stage) == [trained[stage]]


@pytest.mark.slow
def test_reuse_can_be_turned_off(pipeline, trained):
    outputs, _ = pipeline
    arguments = [*SMALL, f"outputs={outputs}", f"teacher.run={trained['teacher']}", "temperature=7", "distill.epochs=1"]
    for reuse, count in (("true", 2), ("true", 2), ("false", 3)):
        assert main([*arguments, f"reuse={reuse}"]) == 0
        assert len(run_dirs(outputs, "distill")) == count
        assert run_dirs(outputs, "teacher") == [trained["teacher"]]
    assert len(run_dirs(outputs, "student")) == 2


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.slow
def test_half_precision_learns_as_float32_does(precision, trained, tmp_path):
    assert main([*SMALL, "stage=teacher", f"precision={precision}", f"outputs={tmp_path}"]) == 0
    record = record_of(run_dirs(tmp_path, "teacher")[0])
    assert record["precision"] == precision
    there, here = (r["results"]["test"]["last"]["cross_entropy"] for r in (record_of(trained["teacher"]), record))
    assert here != there
    assert here == pytest.approx(there, rel=0.05)


def test_the_same_command_twice_gives_the_same_bits(trained, tmp_path):
    assert main([*SMALL, "stage=student", f"outputs={tmp_path}"]) == 0
    again = run_dirs(tmp_path, "student")[0]
    for name in ("best", "last"):
        assert weights_of(again, name) == weights_of(trained["student"], name)
    for file in ("predictions/test.npz", "metrics.jsonl"):
        assert (again / file).read_bytes() == (trained["student"] / file).read_bytes()


def test_another_seed_gives_other_bits(trained, tmp_path):
    assert main([*SMALL, "stage=student", "seed=43", "epochs=1", f"outputs={tmp_path}"]) == 0
    assert weights_of(run_dirs(tmp_path, "student")[0]) != weights_of(trained["student"])


def test_distilling_with_alpha_zero_is_training_alone(trained, tmp_path):
    """The student's start, its batches and its steps are the baseline's; only the loss differs."""
    teacher = trained["teacher"]
    arguments = [*SMALL, "stage=distill", f"teacher.run={teacher}", f"outputs={tmp_path}"]
    assert main([*arguments, "alpha=0"]) == 0
    assert weights_of(run_dirs(tmp_path, "distill")[0]) == weights_of(trained["student"])
    assert weights_of(trained["distill"]) != weights_of(trained["student"])


def test_distilling_leaves_the_teacher_as_it_was(trained):
    from kdrun.runs import record as runs

    record = record_of(trained["teacher"])
    assert runs.damaged(trained["teacher"], record) == []
    assert (
        record_of(trained["distill"])["teachers"][0]["weights_sha256"] == record["files"]["checkpoints/best.weights.h5"]
    )


def test_a_sweep_over_temperature_and_alpha_with_an_automatic_teacher(pipeline, trained):
    outputs, _ = pipeline
    arguments = [
        "-m",
        *SMALL,
        "stage=distill",
        f"outputs={outputs}",
        "distill.epochs=1",
        "temperature=2,5",
        "alpha=0.5,0.9",
    ]
    assert main(arguments) == 0
    jobs = [record_of(path.parent) for path in outputs.glob("sweeps/*/*/run.json")]
    swept = {(job["config"]["temperature"], job["config"]["alpha"]) for job in jobs}
    assert swept == {(2.0, 0.5), (2.0, 0.9), (5.0, 0.5), (5.0, 0.9)}
    assert {job["teachers"][0]["run"] for job in jobs} == {str(trained["teacher"])}
    assert len({job["fingerprint"] for job in jobs}) == 4


@pytest.mark.slow
def test_augmented_views_are_shown_to_a_live_teacher(trained, tmp_path, capsys):
    arguments = [*SMALL, "stage=distill", f"teacher.run={trained['teacher']}", "epochs=1", "data.augment.jitter=2"]
    bits = []
    for attempt in ("one", "two"):
        assert main([*arguments, "data.augment.flip=true", f"outputs={tmp_path / attempt}"]) == 0
        bits.append(weights_of(run_dirs(tmp_path / attempt, "distill")[0]))
    assert bits[0] == bits[1]
    assert "runs beside the student" in capsys.readouterr().out


def test_evaluate_agrees_with_a_run_and_notices_when_it_should_not(trained, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained["distill"], copy)
    arguments = ["stage=evaluate", f"run={copy}", f"outputs={tmp_path}"]
    assert main(arguments) == 0
    record = record_of(copy)
    record["results"]["test"]["last"]["cross_entropy"] += 1e-3
    (copy / "run.json").write_text(json.dumps(sealed(record)))
    assert main(arguments) == 1
    assert "the last weights do not give the test metrics of run.json (cross_entropy)" in capsys.readouterr().err
    shutil.copy(trained["student"] / "checkpoints" / "best.weights.h5", copy / "checkpoints" / "best.weights.h5")
    assert main(arguments) == 1
    assert "best.weights.h5" in capsys.readouterr().err


def test_divergence_ends_with_exit_code_3_and_says_where(tmp_path, capsys):
    arguments = [
        *SMALL,
        "stage=student",
        "optimizer=sgd",
        "optimizer.learning_rate=1e30",
        "optimizer.schedule=constant",
    ]
    assert main([*arguments, f"outputs={tmp_path}"]) == 3
    said = capsys.readouterr().err
    assert re.search(r"the loss is (nan|inf) at step \d+ \(epoch 1\).*optimizer.learning_rate", said)
    record = record_of(run_dirs(tmp_path, "student")[0])
    assert record["status"] == "diverged"
    assert "optimizer.learning_rate" in (run_dirs(tmp_path, "student")[0] / "kdrun.log").read_text()


def test_colour_images_from_a_file_of_the_users_own(tmp_path):
    from kdrun.data import datasets

    with np.load(Path(datasets.__file__).with_name("mnist.npz")) as mnist:
        arrays = {name: mnist[name][:400] for name in mnist.files}
    for name in ("x_train", "x_test"):
        arrays[name] = np.stack([arrays[name]] * 3, axis=-1)
    np.savez(tmp_path / "own.npz", **arrays)
    arguments = [
        "experiment=convnets",
        "data=npz",
        f"data.path={tmp_path / 'own.npz'}",
        "data.validation_size=100",
        "epochs=1",
    ]
    assert main([*arguments, "stage=student", f"outputs={tmp_path / 'outputs'}"]) == 0
    record = record_of(run_dirs(tmp_path / "outputs", "student")[0])
    assert record["image_shape"] == [28, 28, 3]
    assert record["num_classes"] == 10


def test_tensorboard_shows_curves_histograms_config_pictures_and_hyperparameters(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = {}
    for split in ("train", "validation", "test"):
        events = EventAccumulator(str(trained["distill"] / "tensorboard" / split)).Reload()
        shown[split] = {tag for tags in events.Tags().values() if isinstance(tags, list) for tag in tags}
        if split == "validation":
            assert [event.step for event in events.Tensors("cross_entropy")] == [10, 20, 30]
    assert {"loss", "accuracy", "distillation_loss", "learning_rate", "config/text_summary"} <= shown["train"] | {
        f"{tag}/text_summary" for tag in shown["train"]
    }
    assert any("kernel" in tag for tag in shown["train"])
    assert {"accuracy", "cross_entropy", "teacher_kl", "teacher_agreement"} <= shown["validation"]
    assert {"confusion_matrix", "misclassified", "test/accuracy", "_hparams_/session_start_info"} <= shown["test"]


def test_tensorboard_names_runs_by_what_they_are_wherever_the_outputs_are(trained, pipeline, tmp_path):
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    moved = shutil.copytree(pipeline[0], tmp_path / "moved", symlinks=True)
    assert all(link.resolve().is_relative_to(moved.resolve()) for link in (moved / "tensorboard").iterdir())
    shown = EventMultiplexer().AddRunsFromDirectory(str(moved / "tensorboard")).Runs()
    config = record_of(trained["distill"])["config"]
    of_distilled = f"T={config['temperature']:g} alpha={config['alpha']:g} "
    names = [
        f"{stage} convnet {of_distilled * (stage == 'distill')}seed=42" for stage in ("teacher", "student", "distill")
    ]
    splits = {f"{name}/{split}" for name in names for split in ("train", "validation", "test")}
    assert {*splits, f"pipeline {trained['pipeline'].name}"} <= set(shown)


PRESETS = sorted(path.stem for path in Path(__file__).parents[2].glob("conf/experiment/*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.slow
def test_every_preset_runs_one_step(preset, tmp_path):
    arguments = [
        f"experiment={preset}",
        f"outputs={tmp_path}",
        "epochs=1",
        "teacher.epochs=1",
        "data.validation_size=32",
    ]
    arguments += [
        "data.train_size=256",
        "data.test_size=32",
        "tensorboard.histograms=false",
        "optimizer.warmup_epochs=0",
    ]
    arguments += ["teacher.batch_size=256", "student.batch_size=256", "distill.batch_size=256"]
    arguments += ["data.train_fraction=1"]  # of which quick's students see a fiftieth
    if "notebook" in preset or "tuned" in preset:
        small = ["growth_rate=4", "blocks=[1,1,1,1]"]
        arguments += [f"{role}.model.{key}" for role in ("teacher", "student") for key in small]
    assert main(arguments) == 0
    steps = [row["steps"] for row in record_of(run_dirs(tmp_path, "pipeline")[0])["results"]["runs"]]
    assert set(steps) == {1} and len(steps) == (21 if preset == "quick" else 3)
