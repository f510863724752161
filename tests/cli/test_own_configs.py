"""Sweeps and configs of a folder of the user's own do what they do in Hydra, with kdrun's checks, names and totals."""

import json
from pathlib import Path

import pytest

from kdrun.cli.compose import composing
from kdrun.cli.main import get_args_parser, main
from kdrun.cli.plan import check_request

TINY = """
data: {image_size: 8, train_size: 96, validation_size: 64, test_size: 64}
batch_size: 16
epochs: 1
measure_latency: false
tensorboard: {histograms: false}
student: {model: {hidden_units: [8]}}
"""
NETS = "defaults:\n  - override /model@student.model: mlp\n  - override /optimizer: adam\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of configs: an experiment that asks for a sweep, and a config to begin with."""
    monkeypatch.chdir(tmp_path)
    experiments = tmp_path / "mine/experiment"
    experiments.mkdir(parents=True)
    sweep = "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2', alpha: 'choice(0.5,0.9)'}}}\n"
    (experiments / "swept.yaml").write_text(f"# @package _global_\n{NETS}stage: student\n{sweep}{TINY}")
    bad = sweep.replace("'1,2'", "'1,-2'")
    (experiments / "bad.yaml").write_text(f"# @package _global_\n{NETS}stage: student\n{bad}{TINY}")
    own = NETS.replace("defaults:\n", "defaults:\n  - config\n  - _self_\n")
    (tmp_path / "mine/own.yaml").write_text(f"{own}stage: student\nseed: 7\n{TINY}")
    return tmp_path


def jobs(folder: Path) -> list[str]:
    return sorted(path.parent.name.rpartition("-")[0] for path in folder.glob("outputs/sweeps/*/*/run.json"))


def test_a_sweep_in_an_experiment_file_is_a_sweep(folder, capfd):
    assert main(["--config-dir", "mine", "experiment=swept", "workers=1"]) == 0
    assert jobs(folder) == [f"alpha-{alpha}__seed-{seed}" for alpha in (0.5, 0.9) for seed in (1, 2)]
    said = capfd.readouterr().out
    assert "job 4 of 4" in said and "alpha changes nothing that stage=student depends on" in said


def test_what_the_command_line_says_goes_before_what_the_file_says(folder):
    assert main(["--config-dir", "mine", "experiment=swept", "workers=1", "seed=5,6", "alpha=0.5", "-m"]) == 0
    assert jobs(folder) == ["seed-5", "seed-6"]


def test_a_value_of_a_files_sweep_is_checked_before_anything_is_made(folder, capfd):
    assert main(["--config-dir", "mine", "experiment=bad"]) == 2
    assert "seed must be a whole number from 0" in capfd.readouterr().err and not (folder / "outputs").exists()


def test_a_glob_is_all_choices(folder):
    assert main(["-m", "--config-dir", "mine", "experiment=swept", "seed=1", "alpha=0.5", "optimizer=glob(s*)"]) == 0
    assert jobs(folder) == ["optimizer-sgd"]


def test_a_config_of_ones_own_is_what_all_begins_with(folder, capfd):
    assert main(["student", "--config-dir", "mine", "--config-name", "own", "data.test_size=32"]) == 0
    (record,) = [json.loads(path.read_text()) for path in folder.glob("outputs/student/*/run.json")]
    assert record["seed"] == 7 and record["config"]["student"]["model"]["hidden_units"] == [8]
    assert record["results"]["test"]["best"]["count"] == 32
    assert main(["--config-dir", "mine", "--config-name", "ownn"]) == 2
    assert "ownn" in capfd.readouterr().err


def test_bare_kdrun_shows_the_help_and_starts_nothing(command, tmp_path):
    ended = command()
    assert ended.code == 0 and "Presets" in ended.out and "a minute and a half" in ended.out
    assert not list(tmp_path.iterdir())


def test_a_stage_may_be_the_first_word_and_a_preset_may_not(command):
    shown = command("student", "--cfg", "job", "temperature=4").out
    assert "\nstage: student\n" in shown and "\ntemperature: 4\n" in shown
    ended = command("quick")
    assert ended.code == 2 and "Did you mean experiment=quick?" in ended.err


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        (["experiment=quick"], 5),
        (["experiment=quick", "stage=student"], None),
        (["experiment=quick", "stage=student", "seeds=2"], 2),
        (["-m", "experiment=quick", "seed=0,1"], None),
        (["-m", "experiment=quick", "temperature=2,4"], 5),
    ],
)
def test_a_presets_seeds_are_its_pipelines(folder, given, seeds):
    options = get_args_parser().parse_args(given)
    with composing():
        values = check_request(options, [], []).values
    assert values["seeds"] == seeds
    assert bool(values["controls"]) == (seeds == 5)
