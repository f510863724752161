"""Several seeds in one command: what is trained, how it is told apart, and the comparison over all of it."""

import json
from pathlib import Path

import pytest
from held import bits

from kdrun.cli.main import main

TINY = ["data.image_size=8", "data.train_size=96", "data.validation_size=64", "data.test_size=64", "batch_size=16"]
TINY += ["epochs=2", "optimizer=adam", "tensorboard.histograms=false", "measure_latency=false"]
TINY += ["model@teacher.model=mlp", "teacher.model.hidden_units=[16]"]
TINY += ["model@student.model=mlp", "student.model.hidden_units=[8]"]


def record(path: Path) -> dict:
    return json.loads((path / "run.json").read_text())


def runs(folder: Path, stage: str) -> dict[int, dict]:
    """Records of a stage's runs below a folder, by seed, which no two have alike."""
    found = [record(path.parent) for path in folder.glob(f"{stage}/*/run.json")]
    assert len({each["seed"] for each in found}) == len(found)
    return {each["seed"]: each for each in found}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert main([*TINY, "seed=5", "seeds=2", "controls=[label_smoothing]", "workers=2", f"outputs={folder}"]) == 0
    return folder


def test_a_pipeline_of_seeds_has_one_teacher_and_students_and_controls_of_each(study):
    (pipeline,) = study.glob("pipeline/*")
    held = record(pipeline)
    assert list(runs(study, "teacher")) == [5]
    assert set(runs(study, "student")) == {5, 6}
    distilled = [record(path.parent) for path in study.glob("distill/*/run.json")]
    assert sorted((each["seed"], *each["config"]["objective"]) for each in distilled) == [
        *((5, "kd"), (5, "label_smoothing")),
        *((6, "kd"), (6, "label_smoothing")),
    ]
    assert {each["config"]["alpha"] for each in distilled if "label_smoothing" in each["config"]["objective"]} == {1.0}
    assert set(held["stages"]) == {
        *("teacher", "student", "student, seed 6", "distill", "distill, seed 6"),
        *("label_smoothing", "label_smoothing, seed 6"),
    }
    assert len(list(study.glob(".cache/teachers/*/manifest.json"))) == 1
    compared = json.loads((pipeline / "comparison.json").read_text())
    text = json.dumps(compared)
    assert "label smoothing" in text and "2 seeds" in text
    assert (pipeline / "report.html").exists()


def test_each_of_its_runs_has_the_bits_of_a_command_of_its_own(study, tmp_path):
    for stage in ("student", "distill"):
        given = [f"stage={stage}", "seed=6", "teacher.seed=5", *TINY, f"outputs={tmp_path}"]
        teacher = next(study.glob("teacher/*"))
        assert main([*given, *([f"teacher.run={teacher}"] if stage == "distill" else [])]) == 0
        (alone,) = tmp_path.glob(f"{stage}/*")
        same = [
            path.parent
            for path in study.glob(f"{stage}/*/run.json")
            if record(path.parent)["seed"] == 6 and "label_smoothing" not in record(path.parent)["config"]["objective"]
        ]
        assert bits(same[0]) == bits(alone)


def test_more_seeds_train_what_is_new_alone(study, capfd):
    before = {path: path.stat().st_mtime_ns for path in study.glob("*/*/run.json")}
    assert main([*TINY, "seed=5", "seeds=3", "workers=1", f"outputs={study}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    new = [record(path.parent) for path in study.glob("*/*/run.json") if path not in before]
    assert sorted((each["stage"], each.get("seed")) for each in new) == [
        *(("distill", 7), ("pipeline", None), ("student", 7)),
    ]
    assert "3 seeds" in capfd.readouterr().out


@pytest.mark.slow
def test_students_alone_and_teachers_of_each_seed(tmp_path):
    assert main([*TINY, "stage=student", "seeds=[3,9]", "workers=1", f"outputs={tmp_path}"]) == 0
    assert set(runs(tmp_path, "student")) == {3, 9} and not (tmp_path / "teacher").exists()
    given = [*TINY, "stage=distill", "seeds=[3,9]", "workers=1", f"outputs={tmp_path}"]
    assert main([*given, "teachers=seeds"]) == 0
    teachers = runs(tmp_path, "teacher")
    assert set(teachers) == {42, 43}
    taught = runs(tmp_path, "distill")
    by_seed = {record(Path(each["teachers"][0]["run"]))["seed"] for each in taught.values()}
    assert {len(each["teachers"]) for each in taught.values()} == {1} and by_seed == {42, 43}
    assert main([*given, "teachers=2"]) == 0
    ensembles = [each for each in map(record, tmp_path.glob("distill/*")) if len(each["teachers"]) == 2]
    assert {each["seed"] for each in ensembles} == {3, 9}


@pytest.mark.slow
def test_generations_of_seeds_have_seeds_of_their_own(tmp_path):
    given = ["stage=generations", "generations=1", *TINY, "workers=1", "seed=3", f"outputs={tmp_path}"]
    assert main([*given, "seeds=2"]) == 0
    first, later = set(runs(tmp_path, "student")), set(runs(tmp_path, "distill"))
    assert first == {3, 4} and len(later) == 2 and not later & set(range(3, 100))
    held = record(next(tmp_path.glob("generations/*")))
    assert [row["name"] for row in held["results"]["generations"]] == [
        *("generation 0", "generation 1", "generation 0, seed 4", "generation 1, seed 4"),
    ]


@pytest.mark.slow
def test_a_sweep_of_pipelines_over_seeds_ends_with_their_comparison(tmp_path, capfd):
    given = ["-m", *TINY, "seed=3,4", "teacher.seed=3", "sweep=mine", "workers=2", f"outputs={tmp_path}"]
    assert main(given) == 0
    assert list(runs(tmp_path, "teacher")) == [3]  # two jobs want it at once
    said = capfd.readouterr().out
    assert "2 seeds" in said.rpartition("Jobs")[2]
    (compared,) = tmp_path.glob("compare/*")
    assert (compared / "report.html").exists()
    assert main(["stage=compare", f"runs={tmp_path}/sweeps/mine", f"outputs={tmp_path}"]) == 0
    assert "2 seeds" in capfd.readouterr().out


def test_a_sweeps_exit_code_and_table_are_of_its_own_jobs(tmp_path, capfd):
    given = ["-m", "stage=student", *TINY, "sweep=mine", "workers=1", f"outputs={tmp_path}"]
    assert main([*given, "optimizer=sgd", "seed=1", "optimizer.learning_rate=1e30,1e-3"]) == 1
    capfd.readouterr()
    assert main([*given, "seed=2,3"]) == 0
    said = capfd.readouterr().out
    others, own = said.split("Jobs of other commands in this folder")[1].split("\nJobs ")
    assert (
        "seed-2" in own and "seed-3" in own and "learning_rate" not in own.split("not begun")[0].split("\nlearning")[0]
    )
    assert "diverged" in others


REFUSED = {
    "seeds=0": "seeds must be a whole number from 1 to 1000",
    "seeds=[1,1]": "seeds must be a list of seeds, each once",
    "seeds=[]": "not empty",
    "seeds=two": "seeds must be",
    "teachers=0": "teachers must be",
    "controls=[smooth]": "Allowed: label_smoothing, none, shuffled, shuffled_within_class",
    "arms=[teacher]": "arms must be a list of some of student, distill",
    "arms=[]": "arms must be",
    "workers=0": "workers must be",
    "workers=many": "workers must be",
    "seed=2147483647 seeds=3": "seeds must be below 2147483648",
    "stage=teacher seeds=3": "seeds is not for stage=teacher",
    "stage=specialists controls=[shuffled]": "controls is not for stage=specialists",
    "stage=generations teachers=2": "takes seeds, and neither teachers nor controls",
    "teachers=2 teacher.run=somewhere": "Leave one of them out",
    "controls=[label_smoothing] controls.label_smoothing.alpha=2": "must be a number from 0 to 1",
    "controls=[label_smoothing] ++controls.label_smoothing.alfa=1": "there is no such key",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_made(command, given, tmp_path):
    ended = command(*given.split())
    assert ended.code == 2 and REFUSED[given] in ended.err, ended.err
    assert ended.err.count("\n") == 1 and not list(tmp_path.iterdir())
