"""How runs end: numbers that are none, other hosts' runs, closed terminals, disks without room; each for real."""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from held import bits
from processes import Kdrun

from kdrun.cli.main import main
from kdrun.errors import Diverged
from kdrun.runs import record as runs
from kdrun.runs import recording
from kdrun.runtime import tensorflow as startup
from kdrun.storage import manifest

startup.load_tensorflow()

from kdrun.training import network  # noqa: E402

SOAK = os.environ.get("KDRUN_SOAK") == "1"
NETS = ["model@teacher.model=mlp", "model@student.model=mlp", "optimizer=adam", "student.model.hidden_units=[8]"]
SMALL = ["data.image_size=8", "batch_size=32", "epochs=2", "tensorboard.histograms=false", "measure_latency=false"]
SIZES = ["data.train_size=128", "data.validation_size=64", "data.test_size=64", "evaluation_batch_size=64"]
TINY = [*NETS, "teacher.model.hidden_units=[8]", *SMALL, *SIZES]


def tiny(command: list[str]) -> list[str]:
    """TINY for a command; of stages that take a run's own data without keys of data."""
    own = command[0] in ("stage=evaluate", "stage=adjust_bias")
    return [word for word in TINY if not (own and word.startswith("data."))]


def only(outputs: Path, stage: str) -> Path:
    (run_json,) = outputs.glob(f"{stage}/*/run.json")
    return run_json.parent


def done(outputs: Path, *arguments) -> Path:
    network.release()
    assert main([*arguments, f"outputs={outputs}"]) == 0
    return only(outputs, arguments[0].removeprefix("stage="))


def record_of(run_dir: Path) -> dict:
    """run.json as strict JSON, which has no NaN, whatever its status."""

    def refuse(name):
        raise AssertionError(f"{name} in run.json")

    return manifest.unsealed(json.loads((run_dir / "run.json").read_text(), parse_constant=refuse))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return done(tmp_path_factory.mktemp("teacher"), "stage=teacher", *TINY)


# Numbers that are none


def test_a_test_split_that_overflows_is_diverged_and_resuming_says_so(tmp_path, capsys):
    """Bright test images after dark ones: only at the very end are float16 numbers too small for them."""
    random, arrays = np.random.default_rng(0), {}
    for split, count, low, high in (("train", 192, 0, 4), ("test", 32, 255, 256)):
        arrays[f"x_{split}"] = random.integers(low, high, (count, 8, 8), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 4
    arrays["x_test"][:, 0, 0] = 254  # images of one value would be refused
    np.savez(tmp_path / "dark.npz", **arrays)
    command = ["stage=student", *NETS, *SMALL, "data=npz", f"data.path={tmp_path / 'dark.npz'}", "epochs=1"]
    command += ["precision=mixed_float16", "optimizer.learning_rate=40", "data.validation_size=64"]
    network.release()
    assert main([*command, f"outputs={tmp_path / 'half'}"]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "on the test split, with the last weights, 32 of 32 images have logits that are not finite" in said
    assert "precision=float32" in said
    run_dir = only(tmp_path / "half", "student")
    assert record_of(run_dir)["status"] == "diverged" and "results" not in record_of(run_dir)
    assert main([f"resume={run_dir}", f"outputs={tmp_path / 'half'}"]) == 2
    said = capsys.readouterr().err
    assert "diverged, and would do so again" in said and said.count("\n") == 1
    done(tmp_path / "whole", *command, "precision=float32")


@pytest.fixture
def spoilt(teacher, tmp_path) -> Path:
    """A completed run one of whose weights is infinite, its record in agreement with that."""
    import h5py

    place = tmp_path / "outputs/teacher/spoilt"
    shutil.copytree(teacher, place)
    record = record_of(place)
    for name in ("best", "last"):
        weights = place / f"checkpoints/{name}.weights.h5"
        with h5py.File(weights, "r+") as file:
            kernels = []
            file.visititems(lambda _, item, into=kernels: into.append(item) if getattr(item, "ndim", 0) == 2 else None)
            kernels[-1][:, 0] = np.inf
        record["files"][f"checkpoints/{name}.weights.h5"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (place / "run.json").write_text(json.dumps(manifest.sealed(record)))
    return place


SPOILT = {
    "evaluate": (["stage=evaluate", "run=RUN"], "on the test split, with the best weights"),
    "adjust_bias": (["stage=adjust_bias", "run=RUN", "classes=[1,2]"], "on the validation split"),
    "specialists": (["stage=specialists", "run=RUN", "clusters=3"], "on the validation split, by "),
    "distill": (["stage=distill", "teacher.run=RUN", "teacher.cache=off"], "on the validation split, by the teacher"),
}


@pytest.mark.parametrize(("command", "place"), SPOILT.values(), ids=SPOILT)
def test_answers_that_are_not_finite_are_diverged_in_every_stage(command, place, spoilt, tmp_path, capsys):
    command = [word.replace("RUN", str(spoilt)) for word in command]
    assert main([*command, *tiny(command), f"outputs={tmp_path / 'outputs'}"]) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kdrun: ")]
    assert len(lines) == 1 and lines[0].startswith("kdrun: The results diverged: ") and place in lines[0]
    record = record_of(only(tmp_path / "outputs", command[0].removeprefix("stage=")))
    assert record["status"] == "diverged" and "Diverged" in record["error"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("-inf")])
def test_whatever_a_stage_measures_a_result_that_is_not_finite_is_diverged(value, tmp_path):
    results = {"test": {"accuracy": 0.5}, "peers": [{"errors": 3}, {"teacher_kl": value}]}
    with (
        pytest.raises(Diverged, match=rf"results\.peers\.1\.teacher_kl is {value}"),
        recording.recording(tmp_path, {"stage": "student", "data": {}}) as record,
    ):
        record["results"] = results
    assert record_of(tmp_path)["status"] == "diverged"
    assert record_of(tmp_path)["results"] == {**results, "peers": [{"errors": 3}, {"teacher_kl": None}]}


# Another host's run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    return done(tmp_path_factory.mktemp("undisturbed"), "stage=student", *TINY, "epochs=3")


@pytest.fixture
def elsewhere(undisturbed, tmp_path) -> Path:
    """A run whose container was killed in its last epoch, seen from another host a moment later."""
    place = tmp_path / "outputs/student/elsewhere"
    shutil.copytree(undisturbed, place)
    shutil.rmtree(place / "predictions")
    newest = max((place / "checkpoints").glob("state-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(newest)
    seen_from_elsewhere(place, datetime.now(UTC).isoformat())
    return place


def seen_from_elsewhere(run_dir: Path, heartbeat: str) -> None:
    """Have a run's record be what another host left, or is writing."""
    record = {key: value for key, value in record_of(run_dir).items() if key not in ("results", "files", "finished")}
    record |= {"status": "running", "pid": 4711, "host": {**record["host"], "name": "elsewhere"}}
    record["config"]["outputs"] = str(run_dir.parents[1])
    (run_dir / "run.json").write_text(json.dumps(manifest.sealed({**record, "heartbeat": heartbeat})))


RENEWING = """
import json, sys, time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from kdrun.storage import files, manifest
path, ahead = Path(sys.argv[1]), timedelta(days=float(sys.argv[2]))
while True:
    record = manifest.unsealed(json.loads(path.read_text()))
    files.write_json(path, manifest.sealed({**record, "heartbeat": (datetime.now(UTC) + ahead).isoformat()}))
    print("beat", flush=True)
    time.sleep(0.1)
"""


@contextmanager
def renewed(run_dir: Path, days_ahead: float = 0) -> Iterator[None]:
    """While inside, another process, that of another host, writes the run."""
    command = [sys.executable, "-c", RENEWING, str(run_dir / "run.json"), str(days_ahead)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()


WAYS = {
    "resume=DIR": lambda run_dir: [f"resume={run_dir}"],
    "resume=auto": lambda run_dir: ["stage=student", *TINY, "epochs=3", "resume=auto"],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("future", [False, True], ids=["now", "in the future"])
def test_another_hosts_run_whose_heartbeat_stands_still_goes_on(
    way, future, elsewhere, undisturbed, monkeypatch, capfd
):
    if future:
        seen_from_elsewhere(elsewhere, "2999-01-01T00:00:00+00:00")
    assert runs.read(elsewhere)["status"] == "running"
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.3)
    network.release()
    assert main([*way(elsewhere), f"outputs={elsewhere.parents[1]}"]) == 0
    said = "".join(capfd.readouterr())
    assert "process 4711 on elsewhere" in said and "Watching for up to 0.9 s" in said
    assert said.count("Watching") == 1
    assert only(elsewhere.parents[1], "student") == elsewhere
    assert bits(elsewhere) == bits(undisturbed)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("days", [0, 7], ids=["now", "in the future"])
def test_another_hosts_run_whose_heartbeat_moves_is_left_alone(way, days, elsewhere, monkeypatch, capfd):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 5)
    with renewed(elsewhere, days):
        assert main([*way(elsewhere), f"outputs={elsewhere.parents[1]}"]) == 2
    said = "".join(capfd.readouterr())
    assert "is being written by another kdrun (process 4711 on elsewhere)" in said
    assert only(elsewhere.parents[1], "student") == elsewhere
    assert record_of(elsewhere)["status"] == "running"


@pytest.mark.slow
def test_a_part_of_a_pipeline_that_another_host_writes_is_left_alone(teacher, tmp_path, monkeypatch, capfd):
    outputs = tmp_path / "outputs"
    process = Kdrun(
        ["stage=pipeline", *TINY, f"teacher.run={teacher}", "student.epochs=900", f"outputs={outputs}"], tmp_path
    )
    assert process.wait_until(lambda: list(outputs.glob("student/*/checkpoints/state-*"))), process.said()
    process.signal(signal.SIGKILL)
    process.wait()
    part = only(outputs, "student")
    seen_from_elsewhere(part, datetime.now(UTC).isoformat())
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 5)
    network.release()
    with renewed(part):
        assert main([f"resume={only(outputs, 'pipeline')}", f"outputs={outputs}"]) == 2
    assert f"{part} is being written by another kdrun (process 4711 on elsewhere)" in "".join(capfd.readouterr())
    assert record_of(part)["status"] == "running"


def test_a_comparison_does_not_wait_for_anybody(elsewhere, undisturbed, tmp_path, capfd):
    assert main(["stage=compare", f"runs=[{elsewhere},{undisturbed}]", f"outputs={tmp_path / 'compared'}"]) == 0
    said = "".join(capfd.readouterr())
    assert f"not used: {elsewhere}: " in said and "running" in said and "Watching" not in said


def test_a_signal_ends_the_watching_at_once(elsewhere, tmp_path):
    before = (elsewhere / "run.json").read_bytes()
    process = Kdrun([f"resume={elsewhere}", f"outputs={elsewhere.parents[1]}"], tmp_path)
    assert process.wait_until(lambda: "Watching" in process.said())
    process.signal(signal.SIGINT)
    assert process.wait(20) == 130  # which is less than three intervals
    assert "Stopped by SIGINT" in process.said()
    assert (elsewhere / "run.json").read_bytes() == before


# A closed terminal


@pytest.mark.slow
def test_a_terminal_that_is_closed_is_a_signal_and_the_run_is_saved(tmp_path):
    """As when an ssh connection breaks: the kernel sends SIGHUP, and whatever is printed is an error."""
    keyboard, terminal = os.openpty()

    def own_terminal():
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "kdrun", "stage=student", *TINY, "epochs=90000", "outputs=out"],
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=own_terminal,
    )
    os.close(terminal)
    os.set_blocking(keyboard, False)
    said, deadline = b"", time.monotonic() + 120
    while not list(tmp_path.glob("out/student/*/checkpoints/state-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, said
        with suppress(BlockingIOError):
            said += os.read(keyboard, 100_000)
        time.sleep(0.05)
    os.close(keyboard)
    assert process.wait(60) == 128 + signal.SIGHUP
    record = record_of(only(tmp_path / "out", "student"))
    assert record["status"] == "interrupted" and record["error"] == "Stopped: Stopped by SIGHUP."
    steps = [int(path.name.split("-")[1]) for path in tmp_path.glob("out/student/*/checkpoints/state-*")]
    lines = (only(tmp_path / "out", "student") / "metrics.jsonl").read_text().splitlines()
    assert max(steps) >= json.loads(lines[-1])["step"]


@pytest.mark.slow
def test_a_second_sighup_changes_nothing(tmp_path):
    """Shell and kernel both send one."""
    process = Kdrun(["stage=student", *TINY, "epochs=90000", f"outputs={tmp_path}"], tmp_path)
    assert process.wait_until(lambda: list(tmp_path.glob("student/*/metrics.jsonl")))
    for _ in range(5):
        process.signal(signal.SIGHUP)
        time.sleep(0.002)
    assert process.wait() == 129, process.said()
    assert f"Go on with: kdrun resume={only(tmp_path, 'student')}" in process.said()
    assert record_of(only(tmp_path, "student"))["status"] == "interrupted"


def test_under_nohup_a_run_outlives_sighup(tmp_path):
    def hang_up():
        while not list(tmp_path.glob("student/*/metrics.jsonl")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGHUP)
        sent.append(time.monotonic())

    before, sent = signal.signal(signal.SIGHUP, signal.SIG_IGN), []  # as nohup leaves it
    try:
        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        done(tmp_path, "stage=student", *TINY, "epochs=40")
        thread.join()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert record_of(only(tmp_path, "student"))["status"] == "completed" and sent


# A disk without room

# free kB, free inodes, units: HDF5 used to crash at 44 and 124 kB
ROOMS = [(0, 100, 8), (20, 100, 8), (44, 100, 8), (124, 100, 8), (90000, 4, 8), (90000, 14, 8)]
if SOAK:
    ROOMS = [(room, 100, units) for units in (8, 100) for room in range(0, 201, 4)]
    ROOMS += [(90000, inodes, 8) for inodes in range(3, 26)]


@pytest.fixture
def mounted(tmp_path) -> Iterator[Callable]:
    """Mounts a small disk: kB and inodes that are free on it -> its folder."""
    places = []

    def mount(room: int, inodes: int) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        size = f"size={max(room, 4)}k,nr_inodes={inodes + 1 + (not room)}"
        if os.system(f"mount -t tmpfs -o {size} tmpfs {place} 2>/dev/null"):
            pytest.skip("only root may mount a small disk")
        places.append(place)
        if not room:
            (place / "full").write_bytes(bytes(4096))
        return place

    yield mount
    for place in places:
        os.system(f"umount -l {place}")


def advice(process: Kdrun) -> str:
    """The command in the line that a full disk ends with, beside which there is nothing but the log's."""
    assert process.wait() == 1, process.said()
    *log, last = process.said().splitlines()
    others = r"kdrun: |Traceback|Exception ignored|[IWEF]\d{4} |\t"  # TensorFlow's own lines, too
    assert not [line for line in log if re.match(others, line)], process.said()
    found = re.fullmatch(r"kdrun: .* cannot be written: .* Make room, then (?:go on with|run again): (kdrun .*)", last)
    assert found, process.said()
    return found[1]


@pytest.mark.slow
def test_at_every_amount_of_room_there_is_one_line_and_its_advice_works(mounted, tmp_path):
    for some in (ROOMS[first : first + 2] for first in range(0, len(ROOMS), 2)):
        disks = [mounted(room, inodes) for room, inodes, _ in some]
        begun = [
            Kdrun(["stage=student", *TINY, f"student.model.hidden_units=[{units}]", f"outputs={disk}/out"], tmp_path)
            for disk, (*_, units) in zip(disks, some, strict=True)
        ]
        commands = [advice(process) for process in begun]
        for disk in disks:
            assert not os.system(f"mount -o remount,size=90m,nr_inodes=1000 {disk}")
        again = [Kdrun(shlex.split(command)[1:], tmp_path) for command in commands]
        for process, disk in zip(again, disks, strict=True):
            assert process.wait() == 0, process.said()
            assert [runs.read(path.parent)["status"] for path in disk.glob("out/student/*/run.json")] == ["completed"]


# what ends in the middle with so many kB
OTHERS = {
    "evaluate": (["stage=evaluate", "run=RUN"], 20),
    "adjust_bias": (["stage=adjust_bias", "run=RUN", "classes=[1,2]"], 40),
    "compare": (["stage=compare", "runs=RUN"], 100),
    "distill": (["stage=distill", "teacher.run=RUN"], 140),
    "pipeline": (["stage=pipeline", "teacher.run=RUN"], 180),
}


@pytest.mark.parametrize(("command", "room"), OTHERS.values(), ids=OTHERS)
@pytest.mark.slow
def test_every_stage_ends_like_that_where_the_disk_is_full(command, room, mounted, teacher, tmp_path):
    command = [word.replace("RUN", str(teacher)) for word in command]
    rooms = [(less, 100) for less in range(0, room, 20)] + [(90000, inodes) for inodes in range(3, 9)]
    for kilobytes, inodes in rooms if SOAK else [(room, 100)]:
        disk = mounted(kilobytes, inodes)
        again = advice(Kdrun([*command, *tiny(command), f"outputs={disk}/out"], tmp_path))
        assert not os.system(f"mount -o remount,size=90m,nr_inodes=1000 {disk}")
        process = Kdrun(shlex.split(again)[1:], tmp_path)
        assert process.wait() == 0, process.said()
        stage = command[0].removeprefix("stage=")
        assert runs.read(max(disk.glob(f"out/{stage}/*/run.json")).parent)["status"] == "completed"
