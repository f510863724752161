"""One job on several machines: tasks of a cluster on loopback, each a process, against the same command on one."""

import os
import random
import signal
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import reference
from held import bits
from processes import Kdrun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_devices import CASES, CONVNET, LOOSER, SMALL, TEACHER, only, weights

from kdrun.cli.main import main

PLAIN = ["stage=student", "model@student.model=mlp", "student.model.hidden_units=[16]", "optimizer.learning_rate=0.05"]
LONG = ["student.epochs=20", "data.train_size=3840", "checkpoint.every_minutes=0.01"]
OF_ALL = ["objective=[kd,similarity,dist,fitnet,attention]", "teacher.cache=off", "optimizer.learning_rate=1e-4"]
CHECKED = {
    "plain": CASES["plain"],
    "kept answers, clipped, averaged": [*CASES["kept answers"], "optimizer.clip_norm=0.1", "optimizer.ema=0.9"],
    "live features, whole batch": ["stage=distill", *CONVNET, *TEACHER, *OF_ALL],
    "peers": CASES["peers"],
    "densenet": CASES["densenet"],
    "half precision": CASES["half precision"],
}
IN_TIME = 30.0  # seconds in which all end when one is gone


def addresses(count: int) -> list[str]:
    """Free ports of this machine."""
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    found = [f"127.0.0.1:{each.getsockname()[1]}" for each in held]
    for each in held:
        each.close()
    return found


class Tasks:
    """The processes of a cluster's tasks, which have a command in common; `own` are the words of some."""

    def __init__(
        self, folder: Path, count: int, command: list, own: dict | None = None, absent: int = -1, environments=None
    ):
        self.addresses = addresses(count)
        words = [*map(str, command), f"cluster={','.join(self.addresses)}"]
        own = own or {}
        self.all = {}
        for task in range(count):
            if task != absent:
                environment = (environments or {}).get(task)
                self.all[task] = Kdrun([*words, f"task={task}", *own.get(task, [])], folder, environment=environment)

    def end(self, seconds: float = 240) -> dict[int, int]:
        """Their exit codes."""
        return {task: process.wait(seconds) for task, process in self.all.items()}

    def said(self) -> str:
        return "\n".join(f"--- {task}\n{process.said()}" for task, process in self.all.items())


def done(folder: Path, count: int, command: list, own: dict | None = None) -> Path:
    """The run directory of a cluster's job that is done."""
    folder.mkdir(exist_ok=True)
    tasks = Tasks(folder, count, [*command, f"outputs={folder}"], own)
    assert set(tasks.end().values()) == {0}, tasks.said()
    return only(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("teacher")
    process = Kdrun(
        ["stage=teacher", *SMALL, *TEACHER, "optimizer.learning_rate=0.05", f"outputs={outputs}"], outputs.parent
    )
    assert process.wait() == 0, process.said()
    return only(outputs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run of two tasks that goes on for some seconds."""
    shown = ["tracker=[jsonl,tensorboard,terminal]"]
    return done(tmp_path_factory.mktemp("undisturbed"), 2, [*SMALL, *PLAIN, *LONG, *shown])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_several_machines_train_as_one_does(tmp_path, teacher, name):
    """Twenty steps: each variable within 1e-5 of its length; the same command twice has the same bits."""
    command = [*SMALL, *CHECKED[name], *([f"teacher.run={teacher}"] if "stage=distill" in CHECKED[name] else [])]
    alone = Kdrun([*command, f"outputs={tmp_path / 'alone'}"], tmp_path)
    assert alone.wait() == 0, alone.said()
    expected = weights(only(tmp_path / "alone"))
    more = {"plain": ["2 again", "3"], "live features, whole batch": ["2 again"]}.get(name, [])
    runs = [done(tmp_path / each, int(each[0]), command) for each in ("2", *more)]
    for run in runs:
        found = weights(run)
        assert found.keys() == expected.keys()
        for each, value in found.items():
            distance = np.linalg.norm(value - expected[each]) / max(np.linalg.norm(expected[each]), 1.0)
            assert distance <= LOOSER.get(name, 1e-5), (run, each, distance)
    if more:
        assert bits(runs[0]) == bits(runs[1])
    record = reference.record(runs[0])
    assert (record["machines"], record["identity"]["machines"], record["identity"]["devices"]) == (2, 2, 2)


@pytest.mark.slow
def test_the_teacher_is_asked_by_all_in_turns(tmp_path, teacher):
    """A batch each, of four; the bytes are those of one device, with a cache that is shared and with one of its own."""
    command = [*SMALL, *CASES["kept answers"], "epochs=1", "teacher.inference_batch_size=100", f"teacher.run={teacher}"]
    alone = Kdrun([*command, f"outputs={tmp_path / 'alone'}"], tmp_path)
    assert alone.wait() == 0, alone.said()
    expected = answers(tmp_path / "alone/.cache/teachers")
    assert set(expected) == {"train.npy", "validation.npy", "test.npy"}
    done(tmp_path / "three", 3, command, {1: [f"cache_dir={tmp_path / 'own'}"]})
    assert answers(tmp_path / "three/.cache/teachers") == answers(tmp_path / "own") == expected
    devices = Kdrun([*command, "devices=2", f"outputs={tmp_path / 'devices'}"], tmp_path)
    assert devices.wait() == 0, devices.said()
    assert answers(tmp_path / "devices/.cache/teachers") == expected


def answers(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*/*.npy")}


@pytest.mark.slow
def test_only_the_chief_writes_but_for_logs(undisturbed):
    outputs = undisturbed.parents[1]
    assert [path.name for path in (outputs / "student").iterdir()] == [undisturbed.name]
    (log,) = outputs.glob("workers/*/*")
    assert log.name == "kdrun.log" and log.parent.name == f"student_{undisturbed.name}_task1"
    assert "as task 1 (127.0.0.1:" in log.read_text()


@pytest.mark.slow
def test_speed_is_said_of_all_devices_and_of_each(undisturbed):
    results = reference.record(undisturbed)["results"]
    each = results["images_per_second_of_each_device"]
    assert each == pytest.approx(results["images_per_second"] / 2, rel=0.01)
    log = (undisturbed / "kdrun.log").read_text()
    assert " on 2 machines -> " in log and f" images/s ({each:,.0f} on each of 2 devices); test accuracy" in log
    events = EventAccumulator(str(undisturbed / "tensorboard/train")).Reload()
    both = [events.Tensors(f"images_per_second/{of}") for of in ("of_all", "of_each")]
    of_all, of_each = ([one.tensor_proto.float_val[0] for one in curve] for curve in both)
    assert len(of_all) == len(of_each) > 5
    assert of_each == pytest.approx([value / 2 for value in of_all])


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_one_that_is_gone_ends_all_and_the_same_command_goes_on_with_the_same_bits(
    tmp_path, undisturbed, killed, number
):
    command = [*SMALL, *PLAIN, *LONG, f"outputs={tmp_path}"]
    tasks = Tasks(tmp_path, 2, command)
    chief = tasks.all[0]
    assert chief.wait_until(lambda: len(list(tmp_path.glob("student/*/checkpoints/state-*"))) > 1), tasks.said()
    time.sleep(random.random())
    tasks.all[killed].signal(number)
    began = time.monotonic()
    codes = tasks.end(60)
    assert time.monotonic() - began < IN_TIME, tasks.said()
    other = tasks.all[1 - killed].said().splitlines()[-1]
    if number == signal.SIGKILL:
        assert codes == {killed: -signal.SIGKILL, 1 - killed: 1}, tasks.said()
        assert other.startswith(f"kdrun: cluster: task {killed} (127.0.0.1:") and "is gone." in other, tasks.said()
    else:
        assert codes[0] == 128 + signal.SIGTERM and codes[1] == 1, tasks.said()
        assert "Stopped by SIGTERM." in other
    assert "Traceback" not in tasks.said()
    again = Tasks(tmp_path, 2, [*command, "resume=auto"])
    assert set(again.end().values()) == {0}, again.said()
    run = only(tmp_path)
    assert "going on after step" in (run / "kdrun.log").read_text()
    assert bits(run) == bits(undisturbed)


@pytest.mark.slow
def test_in_a_long_epoch_what_was_ten_seconds_ago_is_kept(tmp_path):
    """Nothing is saved in an epoch's first minutes; when another task dies, the chief saves what it had in memory."""
    slow = ["stage=student", "model@student.model=resnet", "student.model.depth=14", "data.train_size=50000"]
    command = [*SMALL, *slow, "student.epochs=1", f"outputs={tmp_path}"]
    tasks = Tasks(tmp_path, 2, command)
    assert tasks.all[0].wait_until(lambda: list(tmp_path.glob("student/*/checkpoints"))), tasks.said()
    time.sleep(25)  # of which the first step takes some
    tasks.all[1].signal(signal.SIGKILL)
    assert tasks.end(60)[0] == 1, tasks.said()
    (state,) = tmp_path.glob("student/*/checkpoints/state-*")
    step = int(state.name.partition("-")[2])
    assert 0 < step < 50000 // 96
    again = Tasks(tmp_path, 2, [*command, "resume=auto"])
    assert again.all[0].wait_until(lambda: f"going on after step {step}," in again.said()), again.said()
    for process in again.all.values():
        process.signal(signal.SIGTERM)
    again.end(60)


@contextmanager
def small_disk(place: Path, size: str):
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size={size} tmpfs {place} 2>/dev/null"):
        pytest.skip("only root may mount a small disk")
    try:
        yield place
    finally:
        os.system(f"umount {place}")


@pytest.mark.slow
def test_a_full_disk_on_the_chief_ends_all(tmp_path):
    wide = [*SMALL, "stage=student", "model@student.model=mlp", "student.model.hidden_units=[800]", "student.epochs=4"]
    with small_disk(tmp_path / "disk", "10m") as disk:
        tasks = Tasks(tmp_path, 2, wide, {0: [f"outputs={disk}"], 1: [f"outputs={tmp_path / 'other'}"]})
        assert tasks.end(60) == {0: 1, 1: 1}, tasks.said()
        assert "are needed" in tasks.all[0].said().splitlines()[-1]
        assert "the chief has ended." in tasks.all[1].said() and "are needed" in tasks.all[1].said().splitlines()[-1]
        assert "Traceback" not in tasks.said()


@pytest.mark.slow
def test_a_chief_that_fails_before_tensorflow_is_there_ends_all(tmp_path):
    """The other task then waits for it before it joins TensorFlow's cluster, in which nothing could end it."""
    with small_disk(tmp_path / "disk", "8k") as disk:
        own = {0: [f"outputs={disk}", f"cache_dir={tmp_path}"], 1: [f"outputs={tmp_path / 'other'}"]}
        tasks = Tasks(tmp_path, 2, [*SMALL, *PLAIN], own)
        began = time.monotonic()
        assert tasks.end(90) == {0: 1, 1: 1}, tasks.said()
        assert time.monotonic() - began < IN_TIME
        assert "the chief has ended." in tasks.all[1].said().splitlines()[-1], tasks.said()
        assert "Traceback" not in tasks.said()


FAILS = """
import os
from kdrun.registry import register


@register("model", "fails")
def fails(inputs, num_classes):
    import tf_keras

    if "KDRUN_TEST_FAILS" in os.environ:
        raise RuntimeError("there is no such thing")
    return tf_keras.layers.Dense(num_classes)(tf_keras.layers.Flatten()(inputs))
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_one_that_fails_ends_all_and_says_why(tmp_path, which):
    (tmp_path / "fails.py").write_text(FAILS)
    command = [*SMALL, "stage=student", f"plugins=[{tmp_path / 'fails.py'}]", "model@student.model=fails"]
    tasks = Tasks(tmp_path, 2, [*command, f"outputs={tmp_path}"], environments={which: {"KDRUN_TEST_FAILS": "1"}})
    codes = tasks.end(60)
    assert 0 not in codes.values(), tasks.said()
    other = tasks.all[1 - which].said().splitlines()[-1]
    assert "there is no such thing" in other and "ended" in other, tasks.said()


def refused(tasks: Tasks, *says: str) -> None:
    """All ended with exit code 2 and one line that says why; nothing was made."""
    assert set(tasks.end(120).values()) == {2}, tasks.said()
    for process in tasks.all.values():
        *_, last = process.said().splitlines()
        assert all(each in last for each in says), tasks.said()
    assert "Traceback" not in tasks.said()


@pytest.mark.slow
def test_who_has_another_config_is_named(tmp_path):
    command = [*SMALL, *PLAIN, f"outputs={tmp_path}"]
    refused(
        Tasks(tmp_path, 2, command, {1: ["optimizer.learning_rate=0.01"]}),
        "task 1 (127.0.0.1:",
        "has another optimizer.learning_rate: 0.01 there, 0.05 on task 0",
    )
    assert not list(tmp_path.glob("student"))


@pytest.mark.slow
def test_who_has_other_data_is_named(tmp_path, write_npz):
    images = np.random.default_rng(1).integers(0, 256, (60, 8, 8), np.uint8)
    mine = write_npz("mine.npz", x_train=images)
    images[7, 3, 3] ^= 1  # a single bit
    other = write_npz("other.npz", x_train=images)
    command = ["stage=student", "data=npz", *PLAIN[1:], "batch_size=10", "epochs=1", f"outputs={tmp_path / 'out'}"]
    own = {0: [f"data.path={mine}"], 1: [f"data.path={other}"]}
    refused(Tasks(tmp_path, 2, command, own), "has another dataset_sha256")
    assert not list(tmp_path.glob("out/student"))


OBJECTIVE = """
import tensorflow as tf
from kdrun.registry import register


@register("objective", "mine")
def mine(batch):
    return {}tf.reduce_mean((batch.logits - batch.teacher_logits) ** 2)
"""


@pytest.mark.slow
def test_who_has_other_code_is_named(tmp_path, teacher):
    own = {}
    for task, factor in enumerate(("", "2 * ")):
        file = tmp_path / f"of{task}.py"
        file.write_text(OBJECTIVE.format(factor))
        own[task] = [f"plugins=[{file}]", "objective=mine"]
    command = [*SMALL, *CASES["kept answers"], f"teacher.run={teacher}", f"outputs={tmp_path}"]
    refused(Tasks(tmp_path, 2, command, own), "task 1", "has another code.objective/mine")


@pytest.mark.slow
def test_who_does_not_come_is_named(tmp_path):
    tasks = Tasks(tmp_path, 3, [*SMALL, *PLAIN, "cluster_timeout=4", f"outputs={tmp_path}"], absent=1)
    refused(tasks, f"cluster: task 1 ({tasks.addresses[1]}) did not come.")
    assert "task 2" not in tasks.all[0].said().splitlines()[-1]
    assert not list(tmp_path.glob("student"))


@pytest.mark.slow
def test_a_chief_that_does_not_come_is_named(tmp_path):
    tasks = Tasks(tmp_path, 2, [*SMALL, *PLAIN, "cluster_timeout=3", f"outputs={tmp_path}"], absent=0)
    assert tasks.end(60) == {1: 2}
    assert f"task 0 ({tasks.addresses[0]}) did not answer" in tasks.said()


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        others = addresses(1)
        for task in (0, 1):
            both = [f"127.0.0.1:{port}", *others] if task == 0 else [*others, f"127.0.0.1:{port}"]
            process = Kdrun(
                [*SMALL, *PLAIN, f"cluster={','.join(both)}", f"task={task}", f"outputs={tmp_path / 'out'}"], tmp_path
            )
            assert process.wait(60) == 2
            assert "another port" in process.said() or "another one" in process.said()
    assert not list(tmp_path.glob("out/student"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cluster=a:1,b:2"], "task must be a number from 0 to 1, got null. Add task=0"),
        (["cluster=a:1,b:2", "task=2"], "task must be a number from 0 to 1, got 2"),
        (["cluster=a:1", "task=0"], "a cluster is of 2 to 1024 tasks, got 1"),
        (["cluster=a,b", "task=0"], "'a' is no HOST:PORT"),
        (["cluster=a:1,a:1", "task=0"], "a:1 is there twice"),
        (["cluster=a:1,b:99999", "task=0"], "'b:99999' is no HOST:PORT"),
        (["task=0"], "Add cluster=HOST:PORT,HOST:PORT"),
        (["cluster=auto"], "neither TF_CONFIG nor SLURM_JOB_ID is in the environment"),
        (["cluster=slurm"], "SLURM_JOB_ID is not in the environment"),
        (["cluster=auto", "task=0"], "Leave task out"),
        (["cluster=a:1,b:2", "task=0", "batch_size=33"], "student.batch_size=33 cannot be spread over 2 devices"),
        (["cluster=a:1,b:2", "task=0", "devices=2"], "in a cluster a CPU is one device"),
        (["cluster=a:1,b:2", "task=0", "stage=pipeline"], "is for one job"),
        (["-m", "seed=1,2", "cluster='a:1,b:2'", "task=0"], "is for one job, not for a sweep"),
    ],
)
def test_what_is_no_cluster_is_refused(tmp_path, capfd, monkeypatch, words, says):
    for name in ("TF_CONFIG", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    stage = [] if any(word.startswith("stage=") for word in words) else ["stage=student"]
    assert main([*stage, *SMALL, *PLAIN[1:], f"outputs={tmp_path / 'out'}", *words]) == 2
    assert says in capfd.readouterr().err
    assert not list(tmp_path.glob("out/*/*"))
