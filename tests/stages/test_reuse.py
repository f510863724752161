"""What is taken for done: nothing that is damaged or was made otherwise, and of several runs the newest."""

import json
import shutil
from pathlib import Path

import pytest
from held import bits
from tiny_images import write

from kdrun.cli.main import main
from kdrun.runs import record as runs
from kdrun.storage.manifest import sealed

FILES = ["checkpoints/best.weights.h5", "checkpoints/last.weights.h5", "predictions/test.npz", "metrics.jsonl"]


def damage(run_dir: Path, name: str) -> None:
    """Flip a bit in the middle of a file."""
    held = bytearray((run_dir / name).read_bytes())
    held[len(held) // 2] ^= 1
    (run_dir / name).write_bytes(held)


def rewrite(run_dir: Path, **changes) -> None:
    record = json.loads((run_dir / "run.json").read_text()) | changes
    (run_dir / "run.json").write_text(json.dumps(sealed(record)))


def run_dirs(outputs: Path, stage: str) -> list[Path]:
    """Run directories of a stage, the oldest first."""
    found = [path.parent for path in outputs.glob(f"{stage}/*/run.json")]
    return sorted(found, key=lambda run_dir: runs.read(run_dir)["started"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[list[str], Path]:
    """A data set's overrides, and the outputs of a finished pipeline; tests work on copies."""
    place = tmp_path_factory.mktemp("finished")
    given = write(place / "my.npz")
    assert main([*given, f"outputs={place / 'outputs'}"]) == 0
    return given, place / "outputs"


@pytest.fixture
def given(finished) -> list[str]:
    return finished[0]


@pytest.fixture
def outputs(finished, tmp_path) -> Path:
    """A copy of the pipeline's outputs."""
    return shutil.copytree(finished[1], tmp_path / "outputs")


@pytest.mark.slow
def test_a_pipeline_takes_no_damaged_run_of_a_part(given, outputs, capsys):
    files = {"teacher": FILES[0], "student": FILES[1], "distill": FILES[2]}
    before = {stage: run_dirs(outputs, stage)[0] for stage in files}
    for stage, name in files.items():
        damage(before[stage], name)
    assert main([*given, f"outputs={outputs}"]) == 0
    assert "reusing" not in capsys.readouterr().out
    for stage, damaged in before.items():
        (new,) = set(run_dirs(outputs, stage)) - {damaged}
        assert runs.damaged(new, runs.read(new)) == []
    assert main(["stage=distill", *given, f"outputs={outputs}"]) == 0  # by the teacher that is whole
    said = runs.read(run_dirs(outputs, "distill")[-1])["teachers"]
    assert [teacher["run"] for teacher in said] == [str(run_dirs(outputs, "teacher")[-1])]


def test_a_pipeline_that_goes_on_begins_a_damaged_part_anew(given, outputs, capsys):
    begun = {stage: run_dirs(outputs, stage)[0] for stage in ("teacher", "student", "distill")}
    (pipeline,) = run_dirs(outputs, "pipeline")
    rewrite(pipeline, status="interrupted", stages={stage: str(run_dir) for stage, run_dir in begun.items()})
    damage(begun["student"], FILES[0])
    assert main([f"resume={pipeline}", f"outputs={outputs}", "reuse=false"]) == 0
    said = capsys.readouterr().out
    assert f"{begun['student']}: {FILES[0]} is not what run.json says. Beginning that stage anew" in said
    for stage, run_dir in begun.items():
        assert (f"reusing the completed run {run_dir}" in said) == (stage != "student")
        assert len(run_dirs(outputs, stage)) == 1 + (stage == "student")
    found = runs.read(pipeline)["results"]["runs"]
    assert str(begun["student"]) not in {row["run"] for row in found}


@pytest.mark.parametrize("name", FILES)
def test_an_automatic_teacher_is_never_a_damaged_one(name, given, outputs, capsys):
    (teacher,) = run_dirs(outputs, "teacher")
    damage(teacher, name)
    assert main(["stage=distill", *given, f"outputs={outputs}", "temperature=3"]) == 2
    assert "teacher.run=auto: no completed teacher run" in capsys.readouterr().err
    assert main(["stage=distill", *given, f"outputs={outputs}", "temperature=3", f"teacher.run={teacher}"]) == 2
    assert f"{name} is not what run.json says" in capsys.readouterr().err
    assert len(run_dirs(outputs, "distill")) == 1


def test_an_automatic_teacher_is_the_newest_that_is_good(given, outputs):
    (first,) = run_dirs(outputs, "teacher")
    finished = runs.read(first)["finished"]
    # neither by name nor by when they were begun
    others = {"0": "2031-01-03", "9": "2031-01-01", "5": "2031-01-02", "7": "2031-01-04", "8": "2031-01-05"}
    for name, day in others.items():
        shutil.copytree(first, first.with_name(name))
        rewrite(first.with_name(name), finished=day + finished[10:])
    damage(first.with_name("8"), FILES[0])
    rewrite(first.with_name("7"), status="interrupted")
    command = ["stage=distill", *given, f"outputs={outputs}", "temperature=3", "distill.epochs=1"]
    assert main(command) == 0
    (teacher,) = runs.read(run_dirs(outputs, "distill")[-1])["teachers"]
    assert teacher["run"] == str(first.with_name("0"))


def test_resume_auto_goes_on_with_the_newest(given, outputs, capsys):
    (first,) = run_dirs(outputs, "student")
    started = runs.read(first)["started"]
    days = {"0": "2031-01-02", "9": "2031-01-03", "5": "2031-01-04", "7": "2031-01-01", "8": "2031-01-05"}
    for name, day in days.items():
        shutil.copytree(first, first.with_name(name))
        rewrite(first.with_name(name), status="interrupted", started=day + started[10:])
    rewrite(first.with_name("8"), fingerprint="0" * 64)
    assert main(["stage=student", *given, f"outputs={outputs}", "resume=auto"]) == 0
    statuses = {name: runs.read(first.with_name(name))["status"] for name in days}
    assert statuses == dict.fromkeys(days, "interrupted") | {"5": "completed"}
    assert len(run_dirs(outputs, "student")) == 1 + len(days)


# Sweeps


def sweep(given: list[str], outputs: Path, rate: str) -> int:
    """Run a sweep of two students by an experiment file, beside its outputs, that is written with a learning rate."""
    folder = outputs.parent / "conf/experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\noptimizer:\n  learning_rate: {rate}\n")
    command = ["-m", "--config-dir", str(folder.parent), *given, "experiment=mine", "stage=student", "seed=0,1"]
    return main([*command, "sweep=s", f"outputs={outputs}"])


def jobs(outputs: Path) -> set[Path]:
    return {path.parent for path in outputs.glob("sweeps/s/*/run.json")}


@pytest.fixture(scope="module")
def finished_sweep(finished, tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("sweep") / "outputs"
    assert sweep(finished[0], outputs, "1e-3") == 0
    return outputs


@pytest.fixture
def swept(finished_sweep, tmp_path) -> Path:
    """A copy of a finished sweep's outputs."""
    return shutil.copytree(finished_sweep, tmp_path / "swept/outputs")


def test_after_an_experiment_file_was_edited_jobs_are_done_again(given, swept, capsys):
    first = jobs(swept)
    for rate, there in (("2e-3", 0), ("0.001", 2), ("0.002", 2)):
        assert sweep(given, swept, rate) == 0
        assert capsys.readouterr().out.count("is completed already") == there
    rates = {run_dir: runs.read(run_dir)["config"]["optimizer"]["learning_rate"] for run_dir in jobs(swept)}
    assert sorted(rates.values()) == [1e-3, 1e-3, 2e-3, 2e-3]
    assert {rates[run_dir] for run_dir in first} == {1e-3}
    assert len({bits(run_dir)["predictions/test.npz"] for run_dir in rates}) == 4


def test_a_damaged_job_is_set_aside_and_done_again(given, swept, capsys):
    files = dict(zip(sorted(jobs(swept)), (FILES[2], FILES[1]), strict=True))
    expected = {run_dir: bits(run_dir) for run_dir in files}
    for run_dir, name in files.items():
        damage(run_dir, name)
    held = {run_dir: (run_dir / name).read_bytes() for run_dir, name in files.items()}
    assert sweep(given, swept, "1e-3") == 0
    said = capsys.readouterr().out
    assert "is completed already" not in said and "failed:" not in said
    assert jobs(swept) == {*files, *(run_dir.with_name(f"{run_dir.name}.damaged") for run_dir in files)}
    for run_dir, name in files.items():
        aside = run_dir.with_name(f"{run_dir.name}.damaged")
        assert f"{run_dir}: {name} is not what run.json says. Set aside as {aside}; doing the job again" in said
        assert (aside / name).read_bytes() == held[run_dir]
        assert bits(run_dir) == expected[run_dir] and runs.damaged(run_dir, runs.read(run_dir)) == []
    table = [line for line in said.splitlines() if line.startswith("│")]
    assert len(table) == 2 and not any(".damaged" in line for line in table)  # what was set aside is no job
    assert sweep(given, swept, "1e-3") == 0
    assert capsys.readouterr().out.count("is completed already") == 2
