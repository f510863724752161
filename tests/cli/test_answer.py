"""print=json: standard output gets one JSON object, whatever prints and however a command ends; all else goes to
standard error."""

import json
import subprocess
import sys

import pytest

STAGE = '''
import logging
import os
import signal

from kdrun.errors import KdrunError
from kdrun.registry import register
from kdrun.runs.recording import recording
from kdrun.runtime import signals

log = logging.getLogger("kdrun.noisy")


@register("stage", "noisy", needs_tensorflow=False)
def noisy(config, run_dir, *, end: str = "well", sentence: str = "It paid."):
    """Says the same by every way to standard output, and ends in one of several ways."""
    print("by Python")
    os.system("echo by a process")
    with recording(run_dir, config) as record:
        log.info("by the log")
        (run_dir / "table.csv").write_text("a,b")
        record["results"] = {"answer": 42, "by": ["é"], "sentence": sentence}
        if end == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
            signals.check()
        if end == "known":
            raise KdrunError("It could not be done.")
        if end == "unknown":
            record["none"] = {}["nowhere"]
        return record["results"]
'''
SAID = ("by Python", "by a process", "by the log")
NOISY = ["plugins=[noisy.py]", "stage=noisy", "print=json"]
RESULT = {"answer": 42, "by": ["é"], "sentence": "It paid."}


@pytest.fixture
def answer(command, tmp_path):
    """Run a command; how it ended, and its answer: all that standard output has is one line."""
    (tmp_path / "noisy.py").write_text(STAGE)

    def run(*given):
        ended = command(*given)
        assert ended.out.count("\n") == 1 and ended.out.endswith("\n"), ended
        return ended, json.loads(ended.out)

    return run


def test_a_run_that_ends_well(answer, tmp_path):
    ended, said = answer(*NOISY)
    assert ended.code == 0 and all(each in ended.err for each in SAID)
    (run_dir,) = (tmp_path / "outputs/noisy").iterdir()
    paths = {"run": run_dir, **{name: run_dir / name for name in ("kdrun.log", "run.json", "table.csv")}}
    assert said == {
        **{"stage": "noisy", "exit_code": 0, "error": None, "verdict": "It paid.", "result": RESULT},
        "paths": {name: str(path) for name, path in paths.items()},
    }


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("known", 1, "It could not be done."),
        ("unknown", 2, "KeyError: 'nowhere'"),  # in a file of the user's own
        ("signal", 143, "Stopped by SIGTERM."),
    ],
)
def test_a_run_that_ends_otherwise_has_what_it_came_to(answer, end, code, error):
    ended, said = answer(*NOISY, f"end={end}")
    assert (ended.code, said["exit_code"]) == (code, code) and error in said["error"], ended
    assert ended.err.endswith(f"kdrun: {said['error']}\n") and all(each in ended.err for each in SAID)
    assert said["result"] == RESULT and said["paths"]["table.csv"].endswith("table.csv")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["temprature=3"], "temprature: there is no such key. Did you mean temperature?"),
        (["stage=evaluate", "run=nowhere"], "nowhere is not a run directory"),
        (["--nope"], "--nope"),
        (["alpha=["], "alpha=["),
        (["plugins=[nowhere.py]"], "nowhere.py is not a file"),
    ],
    ids=str,
)
def test_a_command_that_is_refused(answer, tmp_path, given, error):
    ended, said = answer("print=json", *given)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert error in said["error"] and ended.err == f"kdrun: {said['error']}\n"
    nothing = {"stage": None, "verdict": None, "result": None, "paths": {}, "exit_code": 2}
    assert said == {**nothing, "error": said["error"]}
    assert {path.name for path in tmp_path.iterdir()} == {"noisy.py"}


def test_a_sweeps_jobs_are_listed_each_with_its_own(answer, tmp_path):
    ended, said = answer("-m", *NOISY, "end=well,known", "sweep=mine", "workers=1")
    assert ended.code == said["exit_code"] == 1 and said["error"] == "some of its jobs are not completed"
    assert said["result"] is None and said["paths"] == {"sweep": str(tmp_path / "outputs/sweeps/mine")}
    ends = {job["status"]: job["error"] for job in said["jobs"]}
    assert ends == {"completed": None, "failed": "KdrunError: It could not be done."}
    assert [job["result"] for job in said["jobs"]] == 2 * [RESULT]
    _, again = answer("-m", *NOISY, "end=well,unknown", "sweep=mine", "workers=1")
    assert sorted(job["status"] for job in again["jobs"]) == ["completed", "failed"]  # without the other command's
    assert {"KdrunError: It could not be done."}.isdisjoint(job["error"] for job in again["jobs"])


def test_jobs_are_the_same_however_they_are_printed(command, tmp_path):
    (tmp_path / "noisy.py").write_text(STAGE)
    for words in (NOISY, NOISY[:-1]):
        assert command("-m", *words, "end=well", "sweep=mine", "workers=1").code == 0
    assert len(list((tmp_path / "outputs/sweeps/mine").glob("*/run.json"))) == 1


def test_the_command_line_alone_says_so(command, tmp_path):
    (tmp_path / "noisy.py").write_text(STAGE)
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/my.yaml").write_text("# @package _global_\nprint: json\n")
    for given in (["--config-dir", "mine", "experiment=my"], ["-m", "print=text,json"]):
        ended = command(*NOISY[:-1], *given)
        assert ended.code == 2 and "print: " in ended.err and "Add print=json" in ended.err, ended
        assert not (tmp_path / "outputs").exists()
    ended = command(*NOISY, "--config-dir", "mine", "experiment=my")
    assert ended.code == 0 and json.loads(ended.out)["result"] == RESULT
    assert command("print=xml").err.startswith("kdrun: print must be one of text, json, got 'xml'")


def test_what_shows_a_config_prints_it(command):
    ended = command("print=json", "--cfg", "job")
    assert ended.code == 0 and "print: json\n" in ended.out


def test_an_interrupted_command_has_its_answer(tmp_path):
    """Of a process with closed standard error, too, and from its first moment on."""
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "kdrun", "print=json", "plugins=[slow.py]"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130
    assert json.loads(ended.stdout)["error"] == "Stopped by SIGINT." and ended.stderr == "kdrun: Stopped by SIGINT.\n"
