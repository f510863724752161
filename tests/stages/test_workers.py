"""Jobs beside each other in worker processes: the same bits however many, whatever ends one of them, and none left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from held import bits

from kdrun.cli.main import main
from kdrun.runtime.workers import places

TINY = ["data.image_size=8", "data.train_size=320", "data.validation_size=64", "data.test_size=64", "batch_size=16"]
TINY += ["optimizer=adam", "tensorboard.histograms=false", "measure_latency=false", "cache_dir=cache"]
TINY += ["model@teacher.model=mlp", "teacher.model.hidden_units=[16]"]
TINY += ["model@student.model=mlp", "student.model.hidden_units=[8]", "student.model.hidden_dropout=0.2"]
SWEEP = ["-m", "stage=student", *TINY, "seed=1,2,3,4", "sweep=mine"]


def bits_of_jobs(folder: Path) -> dict[str, dict[str, bytes]]:
    return {path.parent.name: bits(path.parent) for path in sorted(folder.glob("sweeps/mine/*/run.json"))}


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "kdrun", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen) -> str:
    """What a command has said that has ended well."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def writers(folder: Path, least: int) -> dict[Path, int]:
    """The processes that are writing jobs, once there are so many that have saved a state."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        states = {path.parent.parent.parent for path in folder.glob("sweeps/mine/*/checkpoints/state-*/manifest.json")}
        found = {path: json.loads((path / "run.json").read_text()) for path in states}
        at_work = {path: record["pid"] for path, record in found.items() if record["status"] == "running"}
        if len(at_work) >= least:
            return at_work
        time.sleep(0.02)
    raise AssertionError(list(folder.rglob("*")))


def is_there(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True, scope="module")
def all_cores():
    """Workers have the machine's cores, which conftest leaves one of to each of pytest's own."""
    if "KDRUN_TEST_CORES" not in os.environ:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, map(int, os.environ["KDRUN_TEST_CORES"].split(",")))
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    """The bits of the sweep, done in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended(start(folder, *SWEEP, "epochs=12", "workers=1", "outputs=."))
    return bits_of_jobs(folder)


def test_auto_is_a_worker_a_core_as_far_as_jobs_and_memory_go(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = len(os.sched_getaffinity(0))
    assert places("auto", jobs=100, threads=1, bytes_of_one=1) == cores
    assert places("auto", jobs=100, threads=cores, bytes_of_one=1) == 1
    assert places("auto", jobs=1, threads=1, bytes_of_one=1) == 1
    assert places("auto", jobs=100, threads=1, bytes_of_one=10**15) == 1
    assert places(3, jobs=2, threads=1, bytes_of_one=10**15) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert places("auto", jobs=100, threads=1, bytes_of_one=1) == 3


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_bits_do_not_depend_on_how_many_workers(undisturbed, tmp_path, capfd, workers):
    assert main([*SWEEP, "epochs=12", f"workers={workers}", f"outputs={tmp_path}"]) == 0
    assert len(undisturbed) == 4 and bits_of_jobs(tmp_path) == undisturbed
    records = [json.loads(path.read_text()) for path in tmp_path.glob("sweeps/mine/*/run.json")]
    assert len({record["pid"] for record in records}) == workers
    assert os.getpid() not in {record["pid"] for record in records}
    assert {record["threads"] for record in records} == {1}
    said = capfd.readouterr().out
    for record in records:  # lines carry the job's name
        (job,) = [
            path.parent.name
            for path in tmp_path.glob("sweeps/mine/*/run.json")
            if f"seed-{record['seed']}-" in str(path)
        ]
        assert f"{job}: student epoch 12/12" in said
    assert not (tmp_path / "sweeps/mine/.jobs").exists()


@pytest.mark.slow
def test_a_killed_worker_costs_its_job_alone_which_goes_on_to_the_same_bits(undisturbed, tmp_path):
    began = start(tmp_path, *SWEEP, "epochs=12", "workers=2", "outputs=.")
    killed, process = next(iter(writers(tmp_path, 1).items()))
    os.kill(process, signal.SIGKILL)
    said, _ = began.communicate(timeout=120)
    assert began.returncode == 1, said
    assert f"The process of {killed.name} was ended by SIGKILL" in said
    statuses = {
        path.parent.name: json.loads(path.read_text())["status"] for path in tmp_path.glob("sweeps/mine/*/run.json")
    }
    assert [name for name, status in statuses.items() if status != "completed"] == [killed.name]
    assert len(statuses) == 4
    again = start(tmp_path, *SWEEP, "epochs=12", "workers=2", "outputs=.")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert said.count("is completed already") == 3
    assert bits_of_jobs(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_pipeline_goes_on_where_one_of_its_workers_was_killed(tmp_path):
    given = [*TINY, "epochs=6", "seeds=2", "seed=1", "teacher.seed=1", "student.epochs=60", "threads=2"]
    began = start(tmp_path, *given, "workers=2", "outputs=.")
    deadline = time.monotonic() + 120
    while not (state := next(tmp_path.glob("student/*/checkpoints/state-*/manifest.json"), None)):
        assert time.monotonic() < deadline and began.poll() is None
        time.sleep(0.02)
    os.kill(json.loads((state.parents[2] / "run.json").read_text())["pid"], signal.SIGKILL)
    said, _ = began.communicate(timeout=120)
    (pipeline,) = tmp_path.glob("pipeline/*")
    assert began.returncode == 1 and f"Go on with: kdrun resume={pipeline}" in said, said
    again = start(tmp_path, f"resume=pipeline/{pipeline.name}", "workers=1")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    ended(start(tmp_path, *given, "workers=1", "outputs=undisturbed"))
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/run.json")]
    assert {record["threads"] for record in records if record["stage"] != "compare"} == {2}  # those begun later, too
    for stage in ("teacher", "student", "distill"):
        found, expected = (
            {json.loads((path / "run.json").read_text())["seed"]: bits(path) for path in folder.glob(f"{stage}/*")}
            for folder in (tmp_path, tmp_path / "undisturbed")
        )
        assert found == expected


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGKILL))],
    ids=lambda number: number.name,
)
def test_what_ends_the_command_ends_its_workers_whose_states_are_saved(undisturbed, tmp_path, number):
    began = start(tmp_path, *SWEEP, "epochs=1200", "workers=2", "outputs=.")
    at_work = writers(tmp_path, 2)
    began.send_signal(number)
    sent = time.monotonic()
    said, _ = began.communicate(timeout=60)
    while any(map(is_there, at_work.values())):
        assert time.monotonic() - sent < 60, said
        time.sleep(0.02)
    assert began.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number], said
    for run_dir in at_work:
        assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
        assert list(run_dir.glob("checkpoints/state-*/manifest.json"))
    assert len(list(tmp_path.glob("sweeps/mine/*/run.json"))) == 2  # nothing was begun meanwhile
