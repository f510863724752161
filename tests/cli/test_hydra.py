"""kdrun with the Hydra that is installed: .ci/run has this for the next one, too, with its launcher and sweeper."""

import os
import subprocess
import sys
import warnings

import hydra
import pytest
from test_golden import NETS, TINY

STUDENT = ["stage=student", *TINY, *NETS, "epochs=1", "measure_latency=false"]


@pytest.fixture
def alone(tmp_path):
    """A command in a process of its own, in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "kdrun", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--cfg", "job"], 0, ""),
        (["--info", "defaults"], 0, ""),
        (["alpha=1.2"], 2, "kdrun: alpha must be a number from 0 to 1, got 1.2.\n"),
        (["alfa=0.3"], 2, "kdrun: alfa: there is no such key. Did you mean alpha?\n"),
        (["optimizer=adm"], 2, "kdrun: optimizer=adm: there is no such optimizer. Did you mean optimizer=adam? "),
        (["seed=1,2"], 2, "kdrun: seed=1,2: several values are for a sweep: add -m"),
        (["stage=compare"], 2, "kdrun: runs must be given. Write runs=VALUE.\n"),
        (STUDENT, 0, ""),
        (["-m", *STUDENT, "seed=1,2"], 0, ""),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else None,
)
def test_hydra_says_nothing_of_its_own(alone, arguments, code, said):
    ended = alone(*arguments)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == (1 if code else 0), ended.stderr
    assert "Warning" not in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "choice"),
    [
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "seed=1,2"]),
        ("hydra_plugins.hydra_optuna_sweeper", ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"]),
    ],
    ids=["joblib", "optuna"],
)
def test_launcher_and_sweeper_do_their_jobs(alone, tmp_path, package, choice):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package)
    ended = alone("-m", *STUDENT, *choice, "sweep=mine")
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "outputs/sweeps/mine").glob("*/run.json"))) == 2
    assert ended.stdout.count("completed") >= 2  # the table that a sweep ends with
    if hydra.__version__.startswith("1.4"):
        assert "Hydra" not in ended.stderr
