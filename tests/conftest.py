"""Fixtures for tests that use the command line but train nothing; pytest and TensorFlow kept apart."""

import gc
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import absl.logging
import numpy as np
import pytest

from kdrun.cli.main import main

# When Hydra sets up logging, older handlers are closed, and absl's (TensorFlow's) closes its stream unless that is the
# process's own: pytest's capture would be gone.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# A machine of one core: jobs of sweeps and pipelines are done in the test's own process, with the one thread that they
# have wherever they are done. Tests of workers ask for some.
if hasattr(os, "sched_setaffinity"):
    found = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    cores = list(
        map(int, os.environ.setdefault("KDRUN_TEST_CORES", found).split(","))
    )  # before pytest's workers inherit one
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {cores[number % len(cores)]})

# Processes inherit which signals are ignored: under nohup, or in the background of a shell, none would hear them.
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


class Ended(NamedTuple):
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


class Hangs(BaseException):
    """Nothing of kdrun's takes it for an error that it knows."""


@pytest.fixture(autouse=True)
def quick_collections():
    """Leave out of each collection of garbage what all the tests before have left in this process: a second for each
    few commands."""
    yield
    gc.freeze()


@pytest.fixture
def in_time():
    """A test that waits for ever fails, after minutes."""

    def late(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run kdrun in this process, in an empty folder, where any import of TensorFlow is an error."""
    monkeypatch.chdir(tmp_path)
    for package in ("tensorflow", "tf_keras"):
        monkeypatch.setitem(sys.modules, package, None)

    def run(*arguments) -> Ended:
        capfd.readouterr()
        return Ended(main([str(argument) for argument in arguments]), *capfd.readouterr())

    return run


@pytest.fixture
def write_npz(tmp_path):
    """Write a small .npz dataset: 60 + 20 images of 8x8, 3 classes; arrays can be replaced, or left out with None."""

    def write(name: str = "my.npz", save=np.savez, **changes) -> Path:
        random = np.random.default_rng(0)
        arrays = {
            "x_train": random.integers(0, 256, (60, 8, 8), np.uint8),
            "y_train": np.arange(60) % 3,
            "x_test": random.integers(0, 256, (20, 8, 8), np.uint8),
            "y_test": np.arange(20) % 3,
        } | changes
        save(tmp_path / name, **{key: array for key, array in arrays.items() if array is not None})
        return tmp_path / name

    return write


@pytest.fixture
def write_idx(tmp_path):
    """Write a folder of four small IDX files, 60 + 20 images of 8x8; returns it with the arrays in it."""

    def write(opened=open, suffix: str = "") -> tuple[Path, dict[str, np.ndarray]]:
        folder = tmp_path / "idx"
        folder.mkdir()
        random, arrays = np.random.default_rng(0), {}
        for prefix, split, count in (("train", "train", 60), ("t10k", "test", 20)):
            for kind, magic, shape in (("images-idx3", 3, (count, 8, 8)), ("labels-idx1", 1, (count,))):
                array = random.integers(0, 256 if magic == 3 else 10, shape, np.uint8)
                arrays[("x_" if magic == 3 else "y_") + split] = array
                with opened(folder / f"{prefix}-{kind}-ubyte{suffix}", "wb") as file:
                    file.write(bytes([0, 0, 8, magic]) + np.array(shape, ">u4").tobytes() + array.tobytes())
        return folder, arrays

    return write
