"""Who is in a cluster: what Slurm and TF_CONFIG say."""

import pytest

from kdrun.errors import InputError
from kdrun.runtime import cluster


def of(asked: str, task: int | None = None) -> cluster.Cluster | None:
    return cluster.of({"cluster": asked, "task": task})


SLURM = {"SLURM_JOB_ID": "1234567", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize("asked", ["slurm", "auto"])
@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("n[1-4]", ["n1", "n2", "n3", "n4"]),
        ("gpu-a[08-10],login", ["gpu-a08", "gpu-a09", "gpu-a10", "login"]),
        ("a,b,c,d", ["a", "b", "c", "d"]),
        ("x[1,3],y[007-008]", ["x1", "x3", "y007", "y008"]),
    ],
)
def test_slurm_says_who_is_there(monkeypatch, asked, nodes, hosts):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in {**SLURM, "SLURM_STEP_NODELIST": nodes}.items():
        monkeypatch.setenv(name, value)
    assert of(asked) == cluster.Cluster(tuple(f"{host}:24567" for host in hosts), 2)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8"}, "8 tasks on 4 nodes"),
        ({"SLURM_STEP_NODELIST": "n[1-"}, "is no list of nodes"),
        ({"SLURM_STEP_NODELIST": "n[1-999999]"}, "no numbers of nodes"),
        ({"SLURM_PROCID": "7"}, "task must be a number from 0 to 3, got 7"),
        ({"SLURM_JOB_ID": "x"}, "tasks on"),
    ],
)
def test_what_slurm_says_is_checked(monkeypatch, changed, says):
    for name, value in {**SLURM, "SLURM_STEP_NODELIST": "n[1-4]", **changed}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=says.replace("[", r"\[")):
        of("slurm")


def test_without_srun_slurm_is_refused(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    with pytest.raises(InputError, match="Start kdrun with srun"):
        of("slurm")


def test_tf_config_says_who_is_there(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}')
    assert of("auto") == cluster.Cluster(("a:1", "b:2"), 1)
    with_chief = '{"cluster": {"chief": ["c:3"], "worker": ["a:1"]}, "task": {"type": "%s", "index": 0}}'
    monkeypatch.setenv("TF_CONFIG", with_chief % "worker")
    assert of("auto") == cluster.Cluster(("c:3", "a:1"), 1)
    monkeypatch.setenv("TF_CONFIG", with_chief % "chief")
    assert of("auto") == cluster.Cluster(("c:3", "a:1"), 0)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"cluster": {"ps": ["a:1"], "worker": ["b:2"]}, "task": {"type": "ps", "index": 0}}']
)
def test_a_tf_config_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="TF_CONFIG"):
        of("auto")
