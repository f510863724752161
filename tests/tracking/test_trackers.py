"""Trackers of training runs: which ones a run has, what they are told and keep, and what the clock says of speed."""

import json
import os
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from held import arrays, bits
from tiny_images import write

from kdrun.cli.main import main
from kdrun.errors import KdrunError
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runtime import progress
from kdrun.runtime import tensorflow as startup
from kdrun.storage.forms import count
from kdrun.storage.manifest import sealed, unsealed

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from kdrun.tracking import clock as clocks  # noqa: E402
from kdrun.tracking.tracker import Run, Tracker, Trackers, chosen  # noqa: E402

EPOCHS, STEPS, BATCH = 3, 11, 7
LATEST = {"loss": 0.0, "cross_entropy": 0.0, "accuracy": 0.0}
DEFAULT = {"terminal": {}, "jsonl": {}, "tensorboard": {"histograms": False}}


@pytest.fixture
def clock(monkeypatch):
    """A function that lets seconds pass."""
    seconds = [100.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: seconds[0])

    def passing(more: float) -> None:
        seconds[0] += more

    return passing


def facts(run_dir: Path) -> Run:
    return Run(run_dir, "student", datetime.now(UTC), EPOCHS, STEPS, BATCH, {}, {})


@pytest.fixture
def following(tmp_path):
    with Trackers(facts(tmp_path), chosen(DEFAULT)) as found:
        found.start(None)
        found.pause_ended()
        yield found


def test_images_a_second_are_of_the_steps_after_the_first_call(following, clock):
    following.pause_ended()
    for seconds, steps in ((5.0, 3), (1.5, 8), (0.5, 11)):
        clock(seconds)
        following.steps(LATEST, steps)
        clock(40)  # validation
        following.pause_ended()
    speed = following.speed()
    assert speed["images_per_second"] == round(BATCH * (8 + 11) / (1.5 + 0.5), 1) == 66.5
    assert speed["training_seconds"] == 5.0 + 1.5 + 0.5


def test_images_a_second_of_one_call_are_its_own(following, clock):
    following.pause_ended()
    clock(4.0)
    following.steps(LATEST, STEPS)
    assert following.speed()["images_per_second"] == round(BATCH * STEPS / 4, 1)


def test_each_splits_numbers_are_written_under_its_name(following, tmp_path, clock):
    following.pause_ended()
    clock(1.0)
    following.steps(LATEST, STEPS)
    splits = {
        "train": {"loss": 0.1, "accuracy": 0.2},
        "validation": {"accuracy": 0.3, "cross_entropy": 0.4, "teacher_agreement": 0.5, "errors": 6, "count": 7},
    }
    following.epoch(1, splits["train"], splits["validation"], 1, None)
    test = {"best": {"accuracy": 0.8, "cross_entropy": 0.9}, "last": {"accuracy": 0.6, "cross_entropy": 0.7}}
    following.end(test, {"confusion_matrix": np.zeros((2, 2, 3), np.uint8)})
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == [{"epoch": 1, "step": STEPS, "split": split, **values} for split, values in splits.items()]
    following.__exit__()
    shown = {
        split: {
            (tag, event.step): round(float(tf.make_ndarray(event.tensor_proto)), 6)
            for tag in events.Tags()["tensors"]
            if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
            for event in events.Tensors(tag)
        }
        for split in ("train", "validation", "test")
        for events in [EventAccumulator(str(tmp_path / "tensorboard" / split)).Reload()]
    }
    assert shown == {
        split: {(name, STEPS): value for name, value in values.items() if name not in ("errors", "count")}
        for split, values in {**splits, "test": {f"test/{name}": value for name, value in test["best"].items()}}.items()
    }


def linked(outputs: Path) -> dict[str, Path]:
    """The runs that TensorBoard shows of the links, each with the run directory that it is of."""
    return {path.name: path.resolve().parent for path in (outputs / "tensorboard").iterdir()}


def test_tensorboard_is_given_names_that_tell_runs_apart(tmp_path):
    """Two of one name, one that goes on, one that is gone, and one with a name that is no file's."""
    outputs, shown = tmp_path / "outputs", {"model": "mlp", "seed": 3}
    distilled = {**shown, "temperature": 10.0, "alpha": 0.5, "objective": "kd"}
    shuffled = {"teacher": {"shuffle": "within_class"}}

    def begun(place: str, title: str, hyperparameters: dict, config: dict, epochs: int = 0) -> Path:
        config = {"teacher": {"shuffle": "none"}, "outputs": str(outputs), **config}
        run = Run(outputs / place, title, datetime.now(UTC), EPOCHS, STEPS, BATCH, config, hyperparameters)
        with Trackers(run, chosen({"tensorboard": {"histograms": False}})) as following:
            following.start(following.state() if epochs else None, epochs * STEPS, epochs)
        return run.run_dir

    first, second = begun("distill/a", "distill", distilled, {}), begun("distill/b", "distill", distilled, {})
    control = begun("distill/c", "distill", {**distilled, "objective": "dkd", "temperature": 2.5}, shuffled)
    odd = begun("sweeps/s/j", "my/../stage", shown, {})
    expected = {
        "distill mlp T=10 alpha=0.5 seed=3": first,
        "distill mlp T=10 alpha=0.5 seed=3, b": second,
        "distill mlp dkd shuffle=within_class T=2.5 alpha=0.5 seed=3": control,
        "my_.._stage mlp seed=3": odd,
    }
    assert linked(outputs) == expected
    begun("distill/b", "distill", distilled, {}, epochs=1)
    assert linked(outputs) == expected
    shutil.rmtree(first)
    fourth = begun("distill/d", "distill", distilled, {})
    assert linked(outputs) == {**expected, "distill mlp T=10 alpha=0.5 seed=3": fourth}
    elsewhere = begun("../elsewhere/r", "student", shown, {})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tensorboard").write_text("in the way")
    begun("../broken/student/r", "student", shown, {"outputs": str(tmp_path / "broken")})
    assert (elsewhere / "tensorboard/train").is_dir() and len(linked(outputs)) == 4


# Own trackers


class Counted(Tracker):
    """Counts what it is told of, over all processes of a run."""

    STATE = {"epochs": count}  # noqa: RUF012

    def __init__(self):
        self.epochs, self.told = 0, []

    def restore(self, values):
        self.epochs = values["epochs"]

    def start(self, run):
        self.told.append(("start", run.step, run.epoch))

    def steps(self, steps):
        self.told.append(("steps", steps.step, steps.count, dict(steps.latest)))

    def epoch(self, epoch):
        self.epochs += 1
        self.told.append(("epoch", epoch.number, epoch.step, epoch.best))

    def end(self, end):
        self.told.append(("end", end.step, end.test["best"]["accuracy"]))

    def state(self):
        return {"epochs": self.epochs}

    def close(self):
        self.told.append(("close",))


def test_a_tracker_of_ones_own_is_told_everything_and_goes_on_from_its_state(tmp_path):
    first, second = Counted(), Counted()
    with Trackers(facts(tmp_path), {"mine": first}) as following:
        following.start(None)
        following.steps(LATEST, STEPS)
        following.epoch(1, {}, {}, 1, None)
        saved = json.loads(json.dumps(following.state()))
    assert first.told == [("start", 0, 0), ("steps", STEPS, STEPS, LATEST), ("epoch", 1, STEPS, 1), ("close",)]
    with Trackers(facts(tmp_path), {"mine": second}) as following:
        assert following.wrong(saved, STEPS, 1) is None
        following.start(saved, STEPS, 1)
        following.steps(LATEST, STEPS)
        following.epoch(2, {}, {}, 1, None)
        following.end({"best": {"accuracy": 0.5}}, {})
        assert following.state()["trackers"] == {"mine": {"epochs": 2}}
    told = [("start", STEPS, 1), ("steps", 2 * STEPS, STEPS, LATEST), ("epoch", 2, 2 * STEPS, 1)]
    assert second.told == [*told, ("end", 2 * STEPS, 0.5), ("close",)]
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_another_form_is_refused_and_one_that_was_never_kept_begins_anew(tmp_path):
    following = Trackers(facts(tmp_path), {"mine": (mine := Counted())})
    saved = following.state()
    for wrong in (None, {}, {"epochs": "x"}, {"epochs": -1}):
        assert "trackers.mine" in following.wrong(saved | {"trackers": {"mine": wrong}}, 0, 0)
    without = saved | {"trackers": {"somebody_elses": 5}}
    assert following.wrong(without, 0, 0) is None
    following.start(without)
    assert mine.epochs == 0


def test_a_state_without_a_form_is_an_error_when_it_is_saved(tmp_path):
    class Formless(Tracker):
        def state(self):
            return 5

    with pytest.raises(KdrunError, match="tracker mine has a state and no form"):
        Trackers(facts(tmp_path), {"mine": Formless()}).state()


def test_all_are_closed_whatever_one_of_them_raises(tmp_path):
    class Gone(Tracker):
        def __init__(self, error):
            self.error = error

        def close(self):
            raise self.error

    mine = Counted()
    with Trackers(facts(tmp_path), {"disk": Gone(OSError()), "mine": mine}):
        pass
    assert mine.told == [("close",)]
    with (
        pytest.raises(ValueError, match="odd"),
        Trackers(facts(tmp_path), {"odd": Gone(ValueError("odd")), "mine": mine}),
    ):
        pass
    assert mine.told == [("close",), ("close",)]


# Runs


@register("tracker", "stopping")
class Stopping(Tracker):
    """Asks the run to end after its first epoch, once."""

    STATE = count

    def __init__(self):
        self._stopped = 0

    def restore(self, values):
        self._stopped = values

    def epoch(self, epoch):
        if epoch.number == 1 and not self._stopped:
            self._stopped = 1
            os.kill(os.getpid(), signal.SIGTERM)

    def state(self):
        return self._stopped


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Overrides of a student's run of two epochs, and of a config folder with a tracker of one's own."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mine/tracker").mkdir(parents=True)
    text = "# @package _global_\n# Ends a run.\ntracker:\n  stopping: {}\n"
    (folder / "mine/tracker/stopping.yaml").write_text(text)
    return ["--config-dir", str(folder / "mine"), *write(folder / "my.npz"), "epochs=2", "stage=student"]


def done(data: list[str], run_dir: Path, *overrides: str, code: int = 0) -> Path:
    assert main([*data, f"outputs={run_dir.parent}", f"hydra.run.dir={run_dir}", *overrides]) == code
    return run_dir


@pytest.fixture(scope="module")
def usual(data, tmp_path_factory) -> Path:
    return done(data, tmp_path_factory.mktemp("usual") / "run")


@pytest.fixture(scope="module")
def interrupted(data, tmp_path_factory) -> Path:
    given = "tracker=[stopping,terminal,jsonl,tensorboard]"
    return done(data, tmp_path_factory.mktemp("interrupted") / "run", given, code=128 + signal.SIGTERM)


def copied(run_dir: Path, folder: Path) -> Path:
    """A copy of a run that can go on from where it is."""
    run = shutil.copytree(run_dir, folder / "run")
    record = runs.read(run)
    record["config"]["outputs"] = str(folder)
    (run / "run.json").write_text(json.dumps(sealed({k: v for k, v in record.items() if k != "sha256"})))
    return run


def written(run_dir: Path) -> set[str]:
    return {path.name for path in run_dir.iterdir()} & {"metrics.jsonl", "tensorboard"}


@pytest.mark.parametrize(
    ("choice", "files"),
    [("[jsonl]", {"metrics.jsonl"}), ("tensorboard", {"tensorboard"}), ("[]", set())],
)
def test_a_run_has_the_trackers_that_are_chosen_and_the_same_bits(choice, files, data, usual, tmp_path, capsys):
    capsys.readouterr()
    run = done(data, tmp_path / "run", f"tracker={choice}")
    assert written(run) == files
    assert "epoch 1/2" not in capsys.readouterr().out
    record, expected = runs.read(run), runs.read(usual)
    recorded = ["checkpoints/best.weights.h5", "checkpoints/last.weights.h5", "predictions/test.npz", "metrics.jsonl"]
    assert list(expected["files"]) == recorded
    assert list(record["files"]) == [name for name in recorded if name != "metrics.jsonl" or name in files]
    for name in ("predictions/test.npz", *({"metrics.jsonl"} & files)):
        assert (run / name).read_bytes() == (usual / name).read_bytes()
    assert arrays(run / recorded[0]) == arrays(usual / recorded[0])
    assert record["fingerprint"] == expected["fingerprint"]
    assert runs.damaged(run, record) == []
    assert main(["stage=compare", f"runs={run}", f"outputs={tmp_path}"]) == 0


def test_trackers_go_on_with_a_run(data, usual, interrupted, tmp_path, capsys):
    assert written(interrupted) == {"metrics.jsonl", "tensorboard"}
    assert (interrupted / "metrics.jsonl").read_text().count("\n") == 2
    run = copied(interrupted, tmp_path)
    assert main([*data[:2], f"resume={run}"]) == 0
    assert "epoch 2/2" in (said := capsys.readouterr().out) and "epoch 1/2" not in said
    assert bits(run) == bits(usual)


def test_a_state_from_before_trackers_were_apart_is_gone_on_from(data, usual, interrupted, tmp_path):
    run = copied(interrupted, tmp_path)
    for path in (run / "checkpoints").glob("state-*/manifest.json"):
        state = unsealed(json.loads(path.read_text()))
        lines = {"lines": state.pop("trackers")["jsonl"]["lines"]}
        state["monitor"] = lines | state.pop("clock")
        path.write_text(json.dumps(sealed({key: value for key, value in state.items() if key != "sha256"})))
    record = runs.read(run)
    del record["config"]["tracker"]
    (run / "run.json").write_text(json.dumps(sealed({k: v for k, v in record.items() if k != "sha256"})))
    assert main([f"resume={run}"]) == 0
    assert bits(run) == bits(usual) and not list(run.glob("checkpoints/*.damaged"))


def test_a_run_that_goes_on_may_have_other_trackers(data, usual, interrupted, tmp_path):
    run = copied(interrupted, tmp_path)
    assert main([f"resume={run}", "tracker=[jsonl]"]) == 0
    assert bits(run) == bits(usual)
    assert runs.read(run)["config"]["tracker"] == {"jsonl": {}}


def test_lines_that_begin_in_the_middle_of_a_run_are_of_the_epochs_from_there(data, usual, tmp_path):
    run = done(data, tmp_path / "run", "tracker=[stopping]", code=128 + signal.SIGTERM)
    assert main([f"resume={run}", "tracker=[jsonl,tensorboard]", "tensorboard.histograms=true"]) == 0
    lines = (usual / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert (run / "metrics.jsonl").read_text() == "".join(lines[2:])
    assert runs.read(run)["config"]["tracker"] == {"jsonl": {}, "tensorboard": {"histograms": True}}


def test_histograms_follow_their_key_in_a_run_that_goes_on(interrupted, tmp_path):
    run = copied(interrupted, tmp_path)
    assert main([f"resume={run}", "tracker=[tensorboard]", "tensorboard.histograms=true"]) == 0
    config = runs.read(run)["config"]
    assert config["tensorboard"] == config["tracker"]["tensorboard"] == {"histograms": True}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tracker=bogus", "there is no such tracker. Allowed: jsonl, "),
        ("tracker=null", "a choice cannot be null. Allowed: jsonl, mlflow, tensorboard, terminal, trackio, wandb"),
        ("tracker.terminal=5", "tracker.terminal must be without keys of its own, got 5"),
        ("+tracker.mine=5", "tracker.mine: there is no such key"),
        ("tracker.tensorboard.histograms=3", "must be true or false"),
    ],
)
def test_what_is_no_tracker_is_refused(given, said, command):
    ended = command("stage=student", given)
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1


def test_another_process_is_told_of_progress_whoever_follows(tmp_path):
    told = []
    progress.goes_to(told.append)
    try:
        with Trackers(facts(tmp_path), {}) as following:
            following.start(None)
            following.steps({"loss": 1.0, "accuracy": 0.5}, 3)
    finally:
        progress._tell.clear()
    (said,) = told
    run = facts(tmp_path)
    assert (said["step"], said["steps"], said["epochs"]) == (3, run.epochs * run.steps_per_epoch, run.epochs)
    assert said["accuracy"] == 0.5 and said["epoch"] == 3 // run.steps_per_epoch
