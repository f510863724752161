"""One job on several GPUs, of one machine and of several tasks, against one GPU. Skipped where there are too few."""

import numpy as np
import pytest
from held import bits
from test_cluster import Tasks
from test_devices import CASES, CONVNET, SMALL, SYNCHRONISED, in_one_process, only, weights

from kdrun.runtime import devices

HERE = len(devices.visible())
WITHIN = 1e-3  # of a weight's length after twenty steps: a GPU's kernels add in an order of their own
NETS = {"plain": CASES["plain"], "synchronised": CASES["densenet"]}


@pytest.fixture(params=[2, 4, 8])
def count(request) -> int:
    if request.param > HERE:
        pytest.skip(f"{request.param} GPUs are needed, {HERE} are here")
    return request.param


def assert_alike(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert np.linalg.norm(value - expected[name]) <= WITHIN * max(np.linalg.norm(expected[name]), 1.0), name


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_several_gpus_train_as_one_does(tmp_path, count, name):
    command = [*SMALL, *NETS[name], "precision=float32"]
    for number in (1, count):
        in_one_process([[*command, f"devices={number}", f"outputs={tmp_path / str(number)}"]], number)
    assert_alike(weights(only(tmp_path / str(count))), weights(only(tmp_path / "1")))


@pytest.mark.gpu
@pytest.mark.slow
def test_tasks_with_a_gpu_each_train_as_one_does(tmp_path, count, monkeypatch):
    """On one machine, over NCCL where TensorFlow takes it."""
    command = [*SMALL, "stage=student", *CONVNET, *SYNCHRONISED, "precision=float32"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices.visible()[0])
    in_one_process([[*command, f"outputs={tmp_path / 'alone'}"]], 1)
    monkeypatch.undo()
    environments = {task: {"CUDA_VISIBLE_DEVICES": gpu} for task, gpu in enumerate(devices.visible()[:count])}
    tasks = Tasks(tmp_path, count, [*command, f"outputs={tmp_path / 'tasks'}"], environments=environments)
    assert set(tasks.end().values()) == {0}, tasks.said()
    assert_alike(weights(only(tmp_path / "tasks")), weights(only(tmp_path / "alone")))


@pytest.mark.gpu
@pytest.mark.slow
def test_half_precision_is_what_several_gpus_train_in(tmp_path, count):
    """Twice, with finite losses and the same images in each batch; bits are not promised of GPUs."""
    command = [*SMALL, *CASES["plain"], f"devices={count}"]
    for each in ("once", "again"):
        in_one_process([[*command, f"outputs={tmp_path / each}"]], count)
    found = [weights(only(tmp_path / each)) for each in ("once", "again")]
    assert_alike(*found)
    assert bits(only(tmp_path / "once")).keys() == bits(only(tmp_path / "again")).keys()
