"""Runs stopped, killed, damaged or out of room, for real: what goes on ends with the bits of an undisturbed run."""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from held import bits
from identities import TRAINING
from processes import Kdrun

from kdrun.cli.main import main
from kdrun.config.schema import LATER_OF_OPTIMIZER
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runs import recording
from kdrun.runtime import tensorflow as startup
from kdrun.storage.manifest import sealed

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.training import network  # noqa: E402
from kdrun.training.network import Network  # noqa: E402

KILLS = 200 if os.environ.get("KDRUN_SOAK") == "1" else 30
SMALL = [
    "data.train_size=1280",
    "data.validation_size=256",
    "data.test_size=200",
    "data.image_size=28",
    "batch_size=64",
]
SMALL += ["model@teacher.model=convnet", "teacher.model.filters=[4,8]", "evaluation_batch_size=100"]
CONVNET = ["model@student.model=convnet", "student.model.filters=[4,8]", "optimizer=adam"]
MLP = ["model@student.model=mlp", "student.model.hidden_units=[32]", "student.model.hidden_dropout=0.5"]
# dropout, drawn views, AdaBelief and a schedule: everything that a state must hold, or that must need none
STUDENT = ["stage=student", *SMALL, *MLP, "epochs=8", "data.augment.jitter=1", "optimizer.schedule=cosine"]
STUDENT += ["data.augment.resized_crop=0.5", "data.augment.colour.contrast=0.5", "data.augment.cutout=6"]
STUDENT += ["optimizer.ema=0.9", "optimizer.clip_norm=1", "student.mixup=0.4", "student.cutmix=1"]
DENSE = ["model@student.model=densenet", "student.model.blocks=[1,1]", "student.model.growth_rate=4"]


def found(folder: Path, pattern: str) -> list[Path]:
    """What a pattern finds in a folder in which others are making and removing folders."""
    while True:
        try:
            return sorted(folder.glob(pattern))
        except FileNotFoundError:
            continue


def only(outputs: Path, stage: str) -> Path:
    (run_json,) = outputs.glob(f"{stage}/*/run.json")
    return run_json.parent


def done(outputs: Path, *arguments) -> Path:
    """The run directory of a command that was left alone."""
    network.release()
    assert main([*arguments, f"outputs={outputs}"]) == 0
    (stage,) = {a.removeprefix("stage=") for a in arguments if a.startswith("stage=")} or {"pipeline"}
    return only(outputs, stage)


def states(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("state-*"))


def epochs_in_tensorboard(run_dir: Path, split: str) -> Counter:
    """How often each step has a cross-entropy in the event files."""
    steps = Counter()
    for path in (run_dir / "tensorboard" / split).glob("*tfevents*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            steps.update(event.step for value in event.summary.value if value.tag == "cross_entropy")
    return steps


def assert_same(run_dir: Path, undisturbed: Path) -> None:
    assert bits(run_dir) == bits(undisturbed)
    assert runs.read(run_dir)["status"] == "completed"
    assert runs.read(run_dir)["fingerprint"] == runs.read(undisturbed)["fingerprint"]
    for split in ("train", "validation"):
        steps = epochs_in_tensorboard(run_dir, split)
        assert steps == epochs_in_tensorboard(undisturbed, split) and set(steps.values()) == {1}


@contextmanager
def disturbed(happened: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """While inside, act once as soon as something has happened."""
    over = threading.Event()

    def watch():
        while not over.is_set():
            # before and after a run, a signal would end the tests
            if signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL and happened():
                return act()
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def stopped(outputs: Path, number: int, *arguments, after: int = 2) -> Path:
    """The run directory of a command that gets a signal when so many epochs are done."""
    network.release()

    def lines() -> bool:
        counts = [path.read_text().count("\n") for path in found(outputs, "*/*/metrics.jsonl")]
        return bool(counts) and counts[0] >= 2 * after

    with disturbed(lines, lambda: os.kill(os.getpid(), number)):
        assert main([*arguments, f"outputs={outputs}"]) == 128 + number
    (lines_of,) = outputs.glob("*/*/metrics.jsonl")
    return lines_of.parent


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    return done(tmp_path_factory.mktemp("undisturbed"), *STUDENT)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A run that was stopped; tests work on copies of its outputs folder."""
    return stopped(tmp_path_factory.mktemp("interrupted"), signal.SIGTERM, *STUDENT)


@pytest.fixture
def copy(interrupted, tmp_path) -> Path:
    """A copy of the interrupted run."""
    shutil.copytree(interrupted.parents[1], tmp_path / "outputs")
    return only(tmp_path / "outputs", "student")


def resumed(run_dir: Path, *arguments) -> int:
    network.release()
    return main([f"resume={run_dir}", f"outputs={run_dir.parents[1]}", *arguments])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return f"teacher.run={done(tmp_path_factory.mktemp('teacher'), *SMALL, *CONVNET, 'stage=teacher', 'epochs=1')}"


COMMANDS = {
    "student, SIGINT": ([*STUDENT], signal.SIGINT),
    "teacher, SIGTERM": (["stage=teacher", *SMALL, "epochs=6", "optimizer=sgd"], signal.SIGTERM),
    "loss scale": (["stage=student", *SMALL, *CONVNET, "epochs=6", "precision=mixed_float16"], signal.SIGTERM),
    "batch norm": (["stage=student", *SMALL, *DENSE, "epochs=4", "data.train_size=640"], signal.SIGTERM),
    "distilling": (["stage=distill", *SMALL, *CONVNET, "epochs=6"], signal.SIGTERM),
    "features, a memory and annealing": (
        ["stage=distill", *SMALL, *CONVNET, "epochs=6", "objective=[kd,contrastive,variational]", "temperature_end=1"],
        signal.SIGTERM,
    ),
    "fine-tuning": (["stage=student", *SMALL, *CONVNET, "epochs=6", "student.freeze=conv1"], signal.SIGTERM),
    "int8": (["stage=distill", *SMALL, *CONVNET, "epochs=4", "student.quantize=int8"], signal.SIGTERM),
    "distilling, live": (["stage=distill", *SMALL, *CONVNET, "epochs=6", "teacher.cache=off"], signal.SIGTERM),
}


QUICK = ("student, SIGINT", "int8")


@pytest.mark.parametrize(
    ("command", "number"),
    [pytest.param(*each, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, each in COMMANDS.items()],
)
def test_a_run_that_is_stopped_goes_on_and_ends_with_the_same_bits(command, number, teacher, tmp_path, capsys):
    given = {
        "stage=distill": teacher,
        **dict.fromkeys(
            ("student.freeze=conv1", "student.quantize=int8"), teacher.replace("teacher.run", "student.initial_weights")
        ),
    }
    command = [*command, *(each for word, each in given.items() if word in command)]
    run_dir = stopped(tmp_path / "stopped", number, *command)
    said = f"kdrun: Stopped by {number.name}. Go on with: kdrun resume={run_dir}\n"
    assert capsys.readouterr().err.endswith(said)  # after what TensorFlow thinks of half precision
    assert runs.read(run_dir)["status"] == "interrupted"
    assert resumed(run_dir) == 0
    assert "going on after step" in (run_dir / "kdrun.log").read_text()
    assert_same(run_dir, done(tmp_path / "alone", *command))


def test_a_state_without_the_optimizers_slots_gives_other_bits(undisturbed, tmp_path, monkeypatch):
    """The negative control: the comparison would notice."""
    monkeypatch.setattr(Network, "state", property(lambda self: network._state(self.model)))
    run_dir = stopped(tmp_path, signal.SIGTERM, *STUDENT)
    assert resumed(run_dir) == 0
    assert bits(run_dir) != bits(undisturbed)


@pytest.mark.slow
def test_stopped_again_and_again(undisturbed, tmp_path):
    run_dir = stopped(tmp_path, signal.SIGTERM, *STUDENT, after=1)
    for after, number in ((3, signal.SIGINT), (5, signal.SIGTERM)):
        assert stopped(tmp_path, number, f"resume={run_dir}", after=after) == run_dir
    assert resumed(run_dir) == 0
    assert_same(run_dir, undisturbed)
    assert len(runs.read(run_dir)["resumed"]) == 3


def kill_sometime(process: Kdrun, outputs: Path, number: int, generator: random.Random) -> None:
    """Kill a process at a random instant or, every other time, while a particular file is being written."""
    instants = [".*.state-*", ".*.best.weights.h5", ".*.last.weights.h5", "state-*/manifest.json", ".*.test.npz"]
    if number % 2:
        pattern = f"student/*/*/{instants[number // 2 % len(instants)]}"
        before = found(outputs, pattern)
        process.wait_until(lambda: set(found(outputs, pattern)) - set(before))
        time.sleep(generator.choice([0, 0, 0.001, 0.01]))
    else:
        instant = time.monotonic() + generator.uniform(0, 4)
        process.wait_until(lambda: time.monotonic() > instant)
    process.signal(signal.SIGKILL)


@pytest.mark.slow
def test_killed_at_any_instant(undisturbed, tmp_path):
    """kill -9 while particular files are written, and at random; each time the run goes on, until it is done."""
    generator, kills, completed = random.Random(0), 0, []
    while kills < KILLS or not completed:
        outputs = tmp_path / str(len(completed))
        begun = [path.parent for path in outputs.glob("student/*/run.json")]
        command = [f"resume={begun[-1]}"] if begun else STUDENT
        process = Kdrun([*command, f"outputs={outputs}"], tmp_path)
        if kills < KILLS:
            kill_sometime(process, outputs, kills, generator)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.said()
        if code == 0:
            completed.append(begun[-1] if begun else only(outputs, "student"))
        kills += code != 0
    print(f"{kills} kills, {len(completed)} runs completed")
    for run_dir in completed:
        assert_same(run_dir, undisturbed)


@pytest.mark.slow
def test_a_second_signal_stops_at_once_and_the_last_state_stays_good(undisturbed, tmp_path):
    process = Kdrun([*STUDENT, f"outputs={tmp_path}"], tmp_path)
    assert process.wait_until(lambda: found(tmp_path, "student/*/checkpoints/state-*"))
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGTERM)
    assert process.wait() in (143, -signal.SIGTERM)
    run_dir = only(tmp_path, "student")
    assert runs.read(run_dir)["status"] == "interrupted"
    assert resumed(run_dir) == 0
    assert_same(run_dir, undisturbed)


def test_sigusr1_saves_a_state_and_training_goes_on(undisturbed, tmp_path):
    network.release()
    with disturbed(lambda: found(tmp_path, "student/*/metrics.jsonl"), lambda: os.kill(os.getpid(), signal.SIGUSR1)):
        assert main([*STUDENT, f"outputs={tmp_path}"]) == 0
    run_dir = only(tmp_path, "student")
    assert "saved a training state at step" in (run_dir / "kdrun.log").read_text()
    assert_same(run_dir, undisturbed)


def test_states_are_saved_in_mid_epoch_every_so_many_minutes_and_two_are_kept(undisturbed, tmp_path):
    run_dir = done(tmp_path, *STUDENT, "checkpoint.every_minutes=1e-6")
    assert "saved a training state at step 2" in (run_dir / "kdrun.log").read_text()
    assert states(run_dir) == ["state-160", "state-160-unvalidated"]
    assert_same(run_dir, undisturbed)


# Which run goes on, and with what


def test_a_completed_run_says_so(undisturbed, capsys):
    before = bits(undisturbed)
    assert resumed(undisturbed) == 0
    assert capsys.readouterr().out == f"kdrun: {undisturbed} is completed; there is nothing left to do.\n"
    assert bits(undisturbed) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("alpha=0.5", "alpha cannot change in a run that goes on: it is 0.9"),
        ("epochs=7", "epochs can only grow in a run that goes on: it is 8, got 7"),
        ("optimizer=adam", "optimizer cannot be chosen anew"),
        ("experiment=convnets", "experiment cannot be chosen anew"),
        ("resume=nowhere", "nowhere is not a run directory"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(given, said, interrupted, capsys):
    before = (interrupted / "run.json").read_bytes()
    assert main([f"resume={interrupted}", f"outputs={interrupted.parents[1]}", given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (interrupted / "run.json").read_bytes() == before


def test_what_stays_the_same_or_changes_nothing_may_be_given(copy, undisturbed):
    assert resumed(copy, "alpha=0.9", "seed=42", "checkpoint.every_minutes=5", "tensorboard.histograms=false") == 0
    assert_same(copy, undisturbed)


def test_a_run_that_lacks_the_keys_that_came_later_goes_on_as_it_began(tmp_path, capsys):
    command = ["stage=student", *SMALL, *MLP, "epochs=4", "optimizer=adam"]
    run_dir = stopped(tmp_path / "stopped", signal.SIGTERM, *command)
    record = runs.read(run_dir)
    for part in ("data", "teacher", "student"):
        keys = record["config"][part]["augment"]
        record["config"][part]["augment"] = {key: keys[key] for key in ("jitter", "flip")}
        del record["config"][part]["normalise"]
        if part != "data":
            del record["config"][part]["image_size"]
            for key in LATER_OF_OPTIMIZER:
                del record["config"][part]["optimizer"][key]
    del record["config"]["devices"], record["config"]["sync_batch_norm"], record["devices"]
    assert record["identity"]["data"]["augment"] == record["config"]["data"]["augment"]
    (run_dir / "run.json").write_text(json.dumps(sealed(record)))
    assert resumed(run_dir, "data.augment.cutout=3") == 2
    assert "data.augment.cutout cannot change in a run that goes on: it is 0.0" in capsys.readouterr().err
    assert resumed(run_dir, "devices=2") == 2
    assert "devices cannot change in a run that goes on: it is 1 in" in capsys.readouterr().err
    assert resumed(run_dir) == 0
    assert_same(run_dir, done(tmp_path / "alone", *command))


def test_from_another_folder_it_is_refused(copy, capsys):
    assert main([f"resume={copy}", "outputs=elsewhere"]) == 2
    assert "is not below its outputs folder elsewhere" in capsys.readouterr().err


@pytest.mark.slow
def test_more_epochs_at_a_constant_rate_are_as_if_begun_with_them(tmp_path, capsys):
    constant = ["optimizer.schedule=constant"]
    run_dir = stopped(tmp_path / "grown", signal.SIGTERM, *STUDENT, *constant, "epochs=5")
    assert resumed(run_dir, "epochs=7") == 0
    assert "7 epochs instead of 5: at a constant learning rate all is as if begun with 7" in capsys.readouterr().out
    assert_same(run_dir, done(tmp_path / "whole", *STUDENT, *constant, "epochs=7"))


@pytest.mark.slow
def test_more_epochs_under_a_schedule_say_what_they_do_and_are_another_run(copy, undisturbed, tmp_path, capsys):
    assert resumed(copy, "epochs=9") == 0
    assert "cosine schedule is stretched over all 9" in capsys.readouterr().out
    assert runs.read(copy)["results"]["steps"] == 180
    whole = done(tmp_path / "whole", *STUDENT, "epochs=9")
    assert runs.read(copy)["fingerprint"] != runs.read(whole)["fingerprint"]


@pytest.mark.slow
def test_more_epochs_where_temperature_is_annealed_say_so(teacher, tmp_path, capsys):
    command = ["stage=distill", *SMALL, *CONVNET, "epochs=4", teacher, "temperature_end=1"]
    run_dir = stopped(tmp_path, signal.SIGTERM, *command)
    assert resumed(run_dir, "epochs=5") == 0
    assert "what ends at temperature_end is stretched over all 5" in capsys.readouterr().out
    assert runs.read(run_dir)["identity"]["grown_from"] == [4]


def test_resume_auto_goes_on_with_the_same_command_and_else_begins_anew(copy, undisturbed, capsys):
    outputs = copy.parents[1]
    other = [f"outputs={outputs}", "resume=auto", "seed=1", "epochs=1"]
    assert main([*STUDENT, *other]) == 0
    assert runs.read(copy)["status"] == "interrupted" and len(list(outputs.glob("student/*"))) == 2
    network.release()
    assert main([*STUDENT, f"outputs={outputs}", "resume=auto"]) == 0
    assert_same(copy, undisturbed)
    assert main([*STUDENT, f"outputs={outputs}", "resume=auto"]) == 0
    assert len(list(outputs.glob("student/*"))) == 3


@pytest.mark.slow
def test_a_pipeline_goes_on_in_the_stage_it_was_in(tmp_path):
    command = [*SMALL, *CONVNET, "epochs=3", "student.epochs=60", "distill.epochs=3"]
    network.release()
    inside = lambda: any(  # noqa: E731
        path.read_text().count("\n") > 4 for path in found(tmp_path / "stopped", "student/*/metrics.jsonl")
    )
    with disturbed(inside, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main([*command, f"outputs={tmp_path / 'stopped'}"]) == 143
    pipeline = only(tmp_path / "stopped", "pipeline")
    teacher_dir = only(tmp_path / "stopped", "teacher")
    before = bits(teacher_dir)
    assert runs.read(pipeline)["status"] == "interrupted"
    assert resumed(pipeline) == 0
    assert runs.read(pipeline)["status"] == "completed" and bits(teacher_dir) == before
    done(tmp_path / "alone", *command)
    for stage in TRAINING:
        assert_same(only(tmp_path / "stopped", stage), only(tmp_path / "alone", stage))


# Damage


def flip(path: Path, generator: random.Random) -> str:
    """Change a byte of a file, or cut it; says what was done."""
    content = bytearray(path.read_bytes())
    place = generator.randrange(len(content))
    if generator.random() < 0.25:
        path.write_bytes(content[:place])
        return f"{path}: cut to {place} bytes"
    content[place] ^= generator.randrange(1, 256)
    path.write_bytes(content)
    return f"{path}: byte {place}"


DAMAGES = {
    "a flipped byte": lambda newest: flip(newest / "variables.data-00000-of-00001", random.Random(1)),
    "a cut file": lambda newest: (newest / "variables.index").write_bytes(b"x"),
    "a missing file": lambda newest: (newest / "best.weights.h5").unlink(),
    "a missing manifest": lambda newest: (newest / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_set_aside_and_the_one_before_it_used(damage, copy, undisturbed, capsys):
    _, newest = sorted((copy / "checkpoints").glob("state-*"), key=lambda path: int(path.name.split("-")[1]))
    damage(newest)
    assert resumed(copy) == 0
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert newest.with_name(f"{newest.name}.damaged").is_dir()
    assert_same(copy, undisturbed)


def test_without_a_good_state_it_never_starts_from_scratch(copy, capsys):
    for folder in (copy / "checkpoints").glob("state-*"):
        flip(folder / "manifest.json", random.Random(2))
    for _ in range(2):
        assert resumed(copy) == 1
        assert "every saved training state is damaged" in capsys.readouterr().err
    assert len(list((copy / "checkpoints").glob("state-*.damaged"))) == 2


@pytest.mark.slow
def test_no_flip_gives_a_silently_different_result(copy, undisturbed, teacher, tmp_path, capsys):
    """Single bytes flipped and files cut, all over: what is not detected must not matter."""
    generator, flips = random.Random(0), 400 if KILLS > 30 else 100
    detected, harmless = Counter(), Counter()
    completed = only(shutil.copytree(undisturbed.parents[1], tmp_path / "completed"), "student")
    evaluate = ["stage=evaluate", f"run={completed}", f"outputs={tmp_path / 'evaluated'}"]
    finished = [path for path in completed.rglob("*") if path.is_file() and "state-" not in str(path)]
    for number in range(flips):
        if number % 5 == 0:
            place = shutil.copytree(copy.parents[1], tmp_path / f"resumed{number}")
            run_dir = only(place, "student")
            saved = [p for p in (run_dir / "checkpoints").rglob("*") if p.is_file() and "state-" in str(p)]
            path = generator.choice([*saved, run_dir / "run.json"])
            said = flip(path, generator)
            code = resumed(run_dir)
            out = capsys.readouterr()
            assert code in (0, 1, 2), said
            if code == 0:
                assert_same(run_dir, undisturbed)
            noticed = code or "is damaged" in out.out
            kind = "run.json" if path.name == "run.json" else "states"
            shutil.rmtree(place)
        else:
            kinds = Counter(str(path.relative_to(completed)).split("/")[0] for path in finished)
            kind = generator.choice(["checkpoints", "predictions", "run.json", generator.choice(sorted(kinds))])
            path = generator.choice([path for path in finished if str(path.relative_to(completed)).startswith(kind)])
            before = path.read_bytes()
            if not before:
                continue
            said = flip(path, generator)
            code = main(evaluate)
            out = capsys.readouterr()
            assert code in (0, 1, 2) and "Traceback" not in out.err, said
            noticed = code
            if kind == "run.json" and not noticed:  # a space became another kind of space
                assert json.loads(path.read_bytes()) == json.loads(before), said
            assert noticed or kind not in ("checkpoints", "predictions"), said
            path.write_bytes(before)
        (detected if noticed else harmless)[kind] += 1
    print(f"detected: {dict(detected)}; harmless: {dict(harmless)}")
    assert detected.total() > flips / 2 and not harmless["checkpoints"] + harmless["predictions"]


# One writer


@pytest.mark.slow
def test_two_processes_never_write_one_directory(copy):
    first = Kdrun([f"resume={copy}", f"outputs={copy.parents[1]}", "checkpoint.every_minutes=1e-6"], copy.parents[2])
    assert first.wait_until(lambda: runs.read(copy)["status"] == "running")
    second = Kdrun([f"resume={copy}", f"outputs={copy.parents[1]}"], copy.parents[2])
    assert second.wait() == 2 and "is being written by another kdrun" in second.said()
    assert first.wait() == 0, first.said()


@pytest.mark.slow
def test_eight_processes_at_once_are_eight_runs(undisturbed, tmp_path):
    processes = [Kdrun([*STUDENT, f"outputs={tmp_path}"], tmp_path) for _ in range(8)]
    assert [process.wait(240) for process in processes] == [0] * 8
    run_dirs = [path.parent for path in tmp_path.glob("student/*/run.json")]
    assert len(run_dirs) == 8
    for run_dir in run_dirs:
        assert_same(run_dir, undisturbed)


@pytest.mark.slow
def test_a_run_whose_process_is_gone_is_interrupted(tmp_path):
    process = Kdrun([*STUDENT, f"outputs={tmp_path}", "epochs=500"], tmp_path)
    assert process.wait_until(lambda: found(tmp_path, "student/*/checkpoints/state-*"))
    run_dir = only(tmp_path, "student")
    record = runs.read(run_dir)
    assert record["status"] == "running" and record["host"]["name"] and record["pid"] and record["heartbeat"]
    process.signal(signal.SIGKILL)
    process.wait()
    assert json.loads((run_dir / "run.json").read_text())["status"] == "running"
    assert runs.read(run_dir)["status"] == "interrupted"


def test_the_heartbeat_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.05)
    beats = set()

    def look():
        beats.update(json.loads(path.read_text())["heartbeat"] for path in found(tmp_path, "student/*/run.json"))
        return len(beats) > 3

    with disturbed(look, lambda: None):
        done(tmp_path, *STUDENT)
    assert len(beats) > 3


# Bad days


@pytest.mark.slow
def test_a_limit_on_file_size_ends_with_what_is_needed_and_goes_on_afterwards(tmp_path):
    wide = ["stage=student", *SMALL, "model@student.model=mlp", "student.model.hidden_units=[400]", "epochs=4"]
    alone = done(tmp_path / "alone", *wide)
    run_dir = stopped(tmp_path / "full", signal.SIGTERM, *wide)
    before = states(run_dir)
    process = Kdrun([f"resume={run_dir}", f"outputs={tmp_path / 'full'}"], tmp_path, file_size=2_000_000)
    assert process.wait() == 1, process.said()
    error = process.said().splitlines()[-1]
    assert str(run_dir) in error and "are needed" in error and f"kdrun resume={run_dir}" in error
    assert "Traceback" not in process.said()
    assert states(run_dir) == before and runs.read(run_dir)["status"] in ("failed", "interrupted")
    assert resumed(run_dir) == 0
    assert_same(run_dir, alone)


@pytest.mark.slow
def test_a_full_disk_ends_with_what_is_needed_and_goes_on_afterwards(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=8m tmpfs {disk} 2>/dev/null"):
        pytest.skip("only root may mount a small disk")
    try:
        wide = ["stage=student", *SMALL, "model@student.model=mlp", "student.model.hidden_units=[400]", "epochs=4"]
        process = Kdrun([*wide, "tensorboard.histograms=false", f"outputs={disk}"], tmp_path)
        assert process.wait() == 1, process.said()
        run_dir = only(disk, "student")
        error = process.said().splitlines()[-1]
        assert str(run_dir) in error and "are needed" in error and "Traceback" not in process.said()
        moved = Path(shutil.copytree(disk, tmp_path / "room"))
    finally:
        os.system(f"umount {disk}")
    run_dir = only(moved, "student")
    assert resumed(run_dir) == 0
    assert bits(run_dir) == bits(done(tmp_path / "alone", *wide))


def test_a_run_directory_that_is_deleted_while_it_is_written(tmp_path, capfd):
    there = lambda: found(tmp_path, "student/*/metrics.jsonl")  # noqa: E731
    with disturbed(there, lambda: (tmp_path / "student").rename(tmp_path / "gone")):
        assert main([*STUDENT, "epochs=50", f"outputs={tmp_path}"]) == 1
    assert "is gone: somebody deleted it" in capfd.readouterr().err


@pytest.mark.slow
def test_a_clock_that_jumps_back_does_no_harm(undisturbed, tmp_path):
    class Clock(datetime):
        asked = 0

        @classmethod
        def now(cls, zone=None):
            cls.asked += 1
            return datetime.now(zone) - timedelta(hours=cls.asked)

    with mock.patch.object(recording, "datetime", Clock), mock.patch.object(runs, "datetime", Clock):
        run_dir = stopped(tmp_path, signal.SIGTERM, *STUDENT)
        assert resumed(run_dir) == 0
    assert Clock.asked > 4
    assert_same(run_dir, undisturbed)


def test_a_folder_that_cannot_be_written(capsys):
    assert main([*STUDENT, "outputs=/proc/kdrun"]) == 2
    assert "outputs: /proc/kdrun" in capsys.readouterr().err


@register("objective", "not_a_number")
def not_a_number(batch, *, at_step):
    """Fine, except at one step."""
    _, step = tf.unstack(batch.random_seed)
    return tf.reduce_mean((batch.logits - batch.teacher_logits) ** 2) + tf.where(step == at_step - 1, float("nan"), 0.0)


def test_a_loss_that_is_not_a_number_leaves_the_best_weights_from_before(teacher, tmp_path, capsys):
    (tmp_path / "conf/objective").mkdir(parents=True)
    (tmp_path / "conf/objective/not_a_number.yaml").write_text(
        "# @package _global_\nobjective:\n"
        "  not_a_number: {at_step: 50, weight: 1.0, weight_end: null, warmup_epochs: 0.0}\n"
    )
    chosen = ["--config-dir", str(tmp_path / "conf"), "objective=not_a_number"]
    network.release()
    assert main([*chosen, "stage=distill", *SMALL, *CONVNET, teacher, "epochs=5", f"outputs={tmp_path}"]) == 3
    run_dir = only(tmp_path, "distill")
    assert "Training diverged: the loss is nan at step 50 (epoch 3)" in capsys.readouterr().err
    assert runs.read(run_dir)["status"] == "diverged"
    best = (run_dir / "checkpoints/best.weights.h5").read_bytes()
    assert best == (run_dir / "checkpoints/state-40/best.weights.h5").read_bytes()
    assert resumed(run_dir, *chosen[:2]) == 2
    assert "diverged, and would do so again" in capsys.readouterr().err
