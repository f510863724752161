"""TAB: what it offers, and that bash, zsh and fish themselves complete by it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import Terminal
from test_cli import STAGES, assert_refused

from kdrun.cli.completion import SHELLS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """Files and folders with names that a shell has to quote, and one that is hidden."""
    (tmp_path / "my runs/student").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name in ("data/x.npz", "data/a (1).npz", "my runs/run.json", ".hidden"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def offered(command, folder):
    def ask(*words: str) -> list[str]:
        ended = command("--complete", "zsh", *words)
        assert (ended.code, ended.err) == (0, "")
        return ended.out.splitlines()

    return ask


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["te"], ["teacher", "teacher.", "teachers=", "temperature=", "temperature_end=", "tensorboard."]),
        (["teacher", "predi"], []),  # a stage is named already
        (["experiment=paper/te"], ["experiment=paper/teacher", "experiment=paper/temperatures"]),
        (["stage="], [f"stage={name}" for name in STAGES]),
        (["model@stu"], ["model@student.model="]),
        (["model@student.model=res"], ["model@student.model=resnet"]),
        (["teacher.r"], ["teacher.run="]),
        (["teacher.augment.c"], ["teacher.augment.colour.", "teacher.augment.cutout="]),
        (["experiment=convnets", "student.model."], ["student.model.filters="]),
        (["+temperature_"], ["+temperature_end="]),
        (["annealing="], ["annealing=linear", "annealing=cosine"]),
        (["student.quantize="], ["student.quantize=int8", "student.quantize=null"]),
        (["export.format=[onnx,l"], ["export.format=[onnx,litert"]),
        (["objective=[kd,sim"], ["objective=[kd,similarity", "objective=[kd,simkd"]),
        (["-m", "optimizer=adam,s"], ["optimizer=adam,sgd"]),
        (["optimizer=adam,s"], []),
        (["temperature="], []),
        (["hydra/launcher=j"], ["hydra/launcher=joblib"]),
        (["--c"], ["--completion", "--cfg", "--config-dir", "--config-name"]),
        (["--cfg", ""], ["job", "hydra", "all"]),
        (["--completion", "z"], ["zsh"]),
        (["--completion=f"], ["--completion=fish"]),
        # files and folders
        (["data=npz", "data.path="], ["data.path=data/", "data.path=my runs/"]),
        (["data.path=data/"], ["data.path=data/a (1).npz", "data.path=data/x.npz"]),
        (["data.path=."], ["data.path=.hidden"]),
        (["evaluate", "run=my runs/"], ["run=my runs/student/"]),  # it is a folder
        (["run=m"], ["run=my runs/"]),
        (["compare", "runs=[data,my"], ["runs=[data,my runs/"]),
        (["resume=my runs/"], ["resume=my runs/run.json", "resume=my runs/student/"]),
        (["teacher.file=data/x"], ["teacher.file=data/x.npz"]),
        (["file=data/x"], ["file=data/x.npz"]),
        (["inputs=d"], ["inputs=data/"]),
        (["plugins=[d"], ["plugins=[data/"]),
        (["--config-dir", "d"], ["data/"]),
        (["--config-dir=d"], ["--config-dir=data/"]),
        (["data.path=nowhere/"], []),
        # a line that is wrong so far
        (["data=nope", "temperature_"], ["temperature_end="]),
        (["experiment=convnets", "model@student.model=mlp", "student.model.hidden_u"], ["student.model.hidden_units="]),
        (["alpha=[", "alpha_e"], ["alpha_end="]),
        (["nope="], []),
        (["=x"], []),
        ([], None),
    ],
    ids=lambda given: " ".join(given)[:60] if given is not None else "",
)
def test_offered_is(offered, words, wanted):
    found = offered(*words)
    assert found == wanted if wanted is not None else len(found) > 30


def test_the_users_own_folder_is_looked_into(offered, folder):
    (folder / "mine/experiment/deep").mkdir(parents=True)
    (folder / "mine/experiment/deep/own.yaml").write_text("# @package _global_\nepochs: 3\n")
    assert offered("--config-dir", "mine", "experiment=de") == ["experiment=deep/own"]
    assert offered("--config-dir", "mine", "experiment=deep/own", "temperature_") == ["temperature_end="]


def test_a_home_folder_is_meant_by_its_tilde(offered, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "my runs"))
    assert offered("data.path=~/st") == ["data.path=~/student/"]


def test_no_plugin_is_run(offered, folder):
    (folder / "own.py").write_text("open('was_run', 'w')\n")
    assert offered("plugins=[own.py]", "temperature_") == ["temperature_end="]
    assert not (folder / "was_run").exists()


@pytest.mark.parametrize(
    ("line", "replaced", "wanted"),
    [
        ("kdrun experiment=paper/te", "paper/te", ["paper/teacher", "paper/temperatures"]),
        (
            "kdrun experiment=paper/te",
            "experiment=paper/te",
            ["experiment=paper/teacher", "experiment=paper/temperatures"],
        ),
        ("kdrun stage=teacher optimizer=ada", "ada", ["adabelief", "adam", "adamw"]),
        ("kdrun run=", "", ["data/", r"my\ runs/"]),
        (r"kdrun data.path=my\ ru", r"my\ ru", [r"my\ runs/"]),
        ("kdrun data.path=data/a", "data/a", [r"data/a\ \(1\).npz"]),
        ("kdrun 'data.path=data/a", "data.path=data/a", ["data.path=data/a (1).npz"]),
        ('kdrun data.path="data/a', "data/a", ["data/a (1).npz"]),
        ("kdrun compare 'runs=[data,my", "runs=[data,my", ["runs=[data,my runs/"]),
        ("kdrun alpha=1 temperature_", "temperature_", ["temperature_end="]),
    ],
)
def test_bash_is_told_what_it_replaces(command, folder, line, replaced, wanted):
    ended = command("--complete", "bash", line, replaced)
    assert (ended.code, ended.out.splitlines(), ended.err) == (0, wanted, "")


@pytest.mark.parametrize("asked", [[], ["bash"], ["bash", ""], ["fish"], ["nope", "te"]])
def test_a_shell_is_never_shown_an_error(command, asked):
    ended = command("--complete", *asked)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_says_how_it_is_installed(command, shell):
    ended = command("--completion", shell)
    assert (ended.code, ended.err) == (0, "")
    assert f"kdrun --completion {shell}" in ended.out[:200]
    assert command(f"--completion={shell}").out == ended.out


@pytest.mark.parametrize("given", [["--completion"], ["--completion", "tcsh"], ["--completion=tcsh"]])
def test_other_shells_are_refused(command, given):
    assert_refused(command(*given), "--completion", "bash, zsh, fish")


# The shells themselves


@pytest.fixture
def environment(tmp_path_factory):
    """Of a shell that finds kdrun, and has no settings of anybody's."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "kdrun"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kdrun "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    home = {"HOME": str(folder), "TERM": "xterm", "PATH": path, "PS1": "$ ", "LC_ALL": "C.UTF-8"}
    return home | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.parametrize(
    ("shell", "begin"),
    [
        (["bash", "--norc", "--noprofile", "-i"], 'eval "$(kdrun --completion bash)"; echo re""ady\n'),
        pytest.param(
            ["zsh", "-f", "-i"],
            'autoload -Uz compinit; compinit -u -D; eval "$(kdrun --completion zsh)"; echo re""ady\n',
            marks=pytest.mark.slow,
        ),
    ],
    ids=["bash", "zsh"],
)
def test_a_shell_completes(shell, begin, environment, folder):
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed: apt-get install {shell[0]}")
    terminal = Terminal(shell, folder, environment, 100)
    terminal.type(begin)
    terminal.until("ready")
    for typed, wanted in {
        "kdrun experiment=paper/tem\t": r"peratures ",
        "kdrun evaluate run=my\t": r"\\ runs/",
        "kdrun temperature_\t": "end=",
    }.items():
        terminal.type(typed)
        terminal.until(wanted)
        terminal.type("\x15")  # the line away
    terminal.type("exit\n")
    terminal.end()


@pytest.mark.slow
def test_fish_completes(environment, folder):
    if not shutil.which("fish"):
        pytest.skip("fish is not installed: apt-get install fish")
    lines = ["kdrun experiment=paper/te", "kdrun evaluate run=my", "kdrun compare 'runs=[data,my"]
    asked = "; ".join(f"complete -C {shlex.quote(line)}; echo" for line in lines)
    script = f"kdrun --completion fish | source; {asked}"
    ended = subprocess.run(["fish", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    found = [part.splitlines() for part in ended.stdout.strip().split("\n\n")]
    presets = ["experiment=paper/teacher", "experiment=paper/temperatures"]
    assert found == [presets, ["run=my runs/"], ["runs=[data,my runs/"]], ended.stderr
