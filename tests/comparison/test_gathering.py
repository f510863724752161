"""What gathering makes of real runs' records: whom a run is grouped with, of what kind it is, and which numbers count.

One key at a time is changed in copies of a real run, whose identity is then what kdrun makes of such a config.
"""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import identities
import numpy as np
import pandas as pd
import pytest
from another_value import changed
from identities import TRAINING
from tiny_images import write

import kdrun
from kdrun.cli.main import main
from kdrun.comparison import studies
from kdrun.config.schema import flatten
from kdrun.runs import record as runs
from kdrun.runs.identity import fingerprint
from kdrun.storage.manifest import sealed

SEEDS = {"teacher": "teacher.seed", "student": "seed", "distill": "seed"}
# Keys, or the beginnings of keys, that make another network, other data or another number of steps: another study. So
# does the size of a batch where the number of epochs is the same; here the number of steps is.
OF_A_STUDY = ["student.model", "data", "student.epochs", "distill.epochs", "student.augment"]
OF_A_STUDY += ["student.train_on_validation", "student.image_size", "student.normalise", "student.quantize"]
# Keys, or the beginnings of keys, that make another distilled run whose student is like before.
OF_DISTILLING = [
    "temperature",
    "temperature_end",
    "alpha",
    "alpha_end",
    "alpha_warmup_epochs",
    "annealing",
    "objective",
]
OF_DISTILLING += ["distill.peers", "student.classifier", "teacher"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """The run directories of a pipeline whose networks took one step."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    outputs.mkdir()
    assert main([*write(outputs / "my.npz"), "batch_size=320", f"outputs={outputs}"]) == 0
    return {stage: next(outputs.glob(f"{stage}/*/run.json")).parent for stage in TRAINING}


def again(record: dict, config: dict, weights: list[str] | None = None) -> dict:
    """The record as it would be with another config, and other teachers' weights."""
    if weights is None:
        weights = [teacher["weights_sha256"] for teacher in record.get("teachers", ())]
    identity = identities.of(config, record["stage"], record["dataset_sha256"], weights)
    seed = config["teacher"]["seed"] if record["stage"] == "teacher" else config["seed"]
    more = {"config": config, "identity": identity, "fingerprint": fingerprint(identity), "seed": seed}
    return record | more


@pytest.fixture
def gathered(tmp_path):
    """A function from a run directory and records by name to the rows that gathering makes of copies with these."""

    def gather(source: Path, records: dict[str, dict]) -> pd.DataFrame:
        folder = tmp_path / f"copies{len(list(tmp_path.iterdir()))}"
        for name, record in records.items():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("tensorboard", "state-*", ".hydra"))
            (folder / name / "run.json").write_text(json.dumps(sealed(record)))
        found = kdrun.frame(folder)
        assert set(found["problem"]) == {""}
        return found.set_index(found["run"].map(lambda run: Path(run).name))

    return gather


def test_a_records_identity_is_that_of_its_config_and_teachers(trained):
    for run_dir in trained.values():
        record = runs.read(run_dir)
        assert again(record, record["config"]) == record
        assert record["fingerprint"] == fingerprint(record["identity"])
    (teacher,) = runs.read(trained["distill"])["teachers"]
    assert teacher["run"] == str(trained["teacher"])
    assert teacher["weights_sha256"] == runs.read(trained["teacher"])["files"]["checkpoints/best.weights.h5"]
    assert teacher["identity"] == runs.read(trained["teacher"])["identity"]


def is_one(key: str, names: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


@pytest.mark.parametrize("stage", TRAINING)
def test_another_value_of_anything_but_the_seed_is_another_group(stage, trained, gathered):
    record = runs.read(trained[stage])
    keys = [key for key, _ in flatten(record["config"]) if key not in ("stage", "data.path")]
    records = {key: again(record, changed(record["config"], key)) for key in keys}
    rows = gathered(trained[stage], {"as it was": record, **records})
    before = rows.loc["as it was"]
    another = {key for key in keys if records[key]["fingerprint"] != record["fingerprint"]}
    assert len(another) > 20 and SEEDS[stage] in another
    groups = rows["group"][rows["group"] != before["group"]]
    assert set(groups.index) == another - {SEEDS[stage]}
    assert groups.is_unique  # no two of them are alike
    students = set(rows.index[rows["student"] != before["student"]])
    alike = {key for key in another if stage == "distill" and is_one(key, OF_DISTILLING)}
    assert students == another - {SEEDS[stage]} - alike
    if stage != "teacher":
        studies = set(rows.index[rows["study"] != before["study"]])
        assert studies == {key for key in another if is_one(key, OF_A_STUDY)} and studies
    assert rows.loc[SEEDS[stage], "seed"] == before["seed"] + 1
    assert set(rows["seed"].drop(SEEDS[stage])) == {before["seed"]}


def test_students_distilled_and_alone_are_alike_and_of_their_own_kind(trained):
    rows = kdrun.frame(*trained.values()).set_index("stage")
    assert list(rows["kind"]) == ["teacher", "student", "distill"] and set(rows["control"]) == {""}
    assert rows.loc["student", "student"] == rows.loc["distill", "student"] != rows.loc["teacher", "student"]
    assert rows["group"].is_unique
    assert rows.loc["distill", "teacher"] == [str(trained["teacher"])] and rows.loc["student", "teacher"] == []


def test_teachers_that_differ_in_the_seed_alone_are_one_groups(trained, gathered):
    record = runs.read(trained["distill"])
    (teacher,) = record["teachers"]

    def of(*teachers) -> dict:
        teachers = [
            {**each, "weights_sha256": hashlib.sha256(each["weights_sha256"].encode()).hexdigest()} for each in teachers
        ]
        weights = [each["weights_sha256"] for each in teachers]
        return again({**record, "teachers": list(teachers)}, record["config"], weights)

    def like(key: str, value, weights: str) -> dict:
        identity = copy.deepcopy(teacher["identity"])
        *path, last = key.split(".")
        branch = identity
        for part in path:
            branch = branch[part]
        assert branch[last] != value
        branch[last] = value
        return {"run": f"outputs/teacher/{weights}", "weights_sha256": weights, "identity": identity}

    rows = gathered(
        trained["distill"],
        {
            "as it was": record,
            "another seed": of(like("seed", 7, "a")),
            "another rate": of(like("optimizer.learning_rate", 0.5, "b")),
            "another rate and seed": of(like("optimizer.learning_rate", 0.5, "c") | {"weights_sha256": "d"}),
            "more epochs": of(like("epochs", 9, "e")),
            "another model": of(like("model.hidden_units", [8], "f")),
            "two": of(teacher, like("seed", 7, "g")),
            "a file": of({"run": "one.npz", "weights_sha256": "h", "identity": None}),
            "another file": of({"run": "other.npz", "weights_sha256": "i", "identity": None}),
            "the same file": of({"run": "moved.npz", "weights_sha256": "i", "identity": None}),
        },
    )
    alike = [
        ["as it was", "another seed"],
        ["another rate", "another rate and seed"],
        ["another file", "the same file"],
    ]
    for one, other in alike:
        assert rows.loc[one, "group"] == rows.loc[other, "group"]
    assert rows["group"].nunique() == len(rows) - len(alike)
    assert rows["student"].nunique() == 1


def test_controls_are_no_distilled_students(trained, gathered):
    record = runs.read(trained["distill"])
    weights = {"weight": 1.0, "weight_end": None, "warmup_epochs": 0.0}
    smoothing, free = {**weights, "smoothing": 0.1}, {**weights, "probability": 0.99}
    kd = record["config"]["objective"]["kd"]

    def of(shuffle: str = "none", peers: int = 0, teachers: bool = True, **objective) -> dict:
        config = copy.deepcopy(record["config"])
        config["teacher"]["shuffle"], config["distill"]["peers"] = shuffle, peers
        config["objective"] = objective or config["objective"]
        return again(record if teachers else {**record, "teachers": []}, config)

    rows = gathered(
        trained["distill"],
        {
            "distilled": of(),
            "two objectives": of(kd=kd, label_smoothing=smoothing),
            "peers": of(peers=2, teachers=False),
            "shuffled": of(shuffle="all"),
            "within class": of(shuffle="within_class"),
            "smoothed": of(label_smoothing=smoothing, teachers=False),
            "free": of(teacher_free=free, teachers=False),
        },
    )
    assert rows["control"].to_dict() == {
        "distilled": "",
        "two objectives": "",
        "peers": "",
        "shuffled": "shuffled teacher",
        "within class": "teacher shuffled within class",
        "smoothed": "label smoothing",
        "free": "teacher free",
    }
    assert rows["kind"].to_dict() == {
        name: "control" if control else "distill" for name, control in rows["control"].items()
    }
    assert rows["objective"].to_dict() == {
        **dict.fromkeys(("distilled", "shuffled", "within class"), "kd"),
        "two objectives": "kd+label_smoothing",
        "peers": "kd of peers",
        "smoothed": "label_smoothing",
        "free": "teacher_free",
    }
    assert rows["group"].is_unique and rows["student"].nunique() == 1


def test_every_number_is_the_records_own(trained, gathered):
    record = runs.read(trained["distill"])
    made_up = {
        split: {
            which: {"accuracy": 0.1 * n + m / 100, "errors": 10 * n + m, "cross_entropy": 20 * n + m, "count": 64}
            | {"teacher_agreement": 0.3 * n + m / 100, "teacher_kl": 40 * n + m}
            | {"epoch": 1}
            for m, which in enumerate(("best", "last"), start=1)
        }
        for n, split in enumerate(("validation", "test"), start=1)
    }
    results = {**made_up, "steps": 11, "training_seconds": 12.5, "images_per_second": 13.5}
    results["latency"] = {"batch_1_median": 0.1, "batch_1_p95": 0.2, "batch_128_median": 0.3, "batch_128_p95": 0.4}
    parameters = {"total": 100, "trainable": 90, "objectives": 5}
    rows = gathered(
        trained["distill"],
        {"run": record | {"results": results, "parameters": parameters, "multiply_adds": 77}},
    )
    validation, test = made_up["validation"]["best"], made_up["test"]["best"]
    with np.load(trained["distill"] / "predictions/test.npz") as saved:
        labels, z = saved["labels"], saved["logits"].astype(float)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = {
        "validation_accuracy": validation["accuracy"],
        "validation_cross_entropy": validation["cross_entropy"],
        "test_accuracy": test["accuracy"],
        "errors_last": made_up["test"]["last"]["errors"],
        **{key: test[key] for key in ("errors", "count", "cross_entropy", "teacher_agreement", "teacher_kl")},
        "brier": np.mean(np.sum((p - np.eye(4)[labels]) ** 2, axis=1)),
        **{"steps": 11, "training_seconds": 12.5, "images_per_second": 13.5},
        **{"parameters": 100, "multiply_adds": 77, "epochs": 1, "held_out": True, "model": "mlp"},
        **{"temperature": 10.0, "alpha": 0.9, "config.temperature": 10.0},
        **{f"latency_{name}": value for name, value in results["latency"].items()},
    }
    assert (rows.loc["run", "right"] == (z.argmax(axis=1) == labels)).all()
    found = rows.loc["run", list(expected)].to_dict()
    assert found == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in expected.items()
    }


def test_groups_are_means_over_their_seeds_and_learning_rates_are_settings_of_one_study(trained, gathered):
    """Two learning rates and two seeds of each, distilled and alone: nothing is averaged over rates."""
    frames = []
    for stage, better in (("student", 0.0), ("distill", 0.1)):
        record, records = runs.read(trained[stage]), {}
        for rate in (1e-3, 1e-2):
            for seed in (0, 1):
                config = copy.deepcopy(record["config"]) | {"seed": seed}
                config["student"]["optimizer"]["learning_rate"] = rate
                made = again(record, config)
                accuracy = 0.5 + better + 10 * rate + (seed + 1) * better / 10
                made["results"] = copy.deepcopy(record["results"])
                made["results"]["test"]["best"]["accuracy"] = accuracy
                made["results"]["validation"]["best"]["accuracy"] = accuracy - 0.3
                records[f"{stage} {rate} {seed}"] = made
        frames.append(gathered(trained[stage], records))
    judgement = studies.judge(pd.concat(frames, ignore_index=True).sample(frac=1, random_state=1))
    assert len(judgement.groups) == 4 and set(judgement.groups["n"]) == {2}
    distilled = judgement.groups[judgement.groups["kind"] == "distill"]
    assert sorted(distilled["test_accuracy"]) == pytest.approx([0.625, 0.715])
    alone = judgement.groups[judgement.groups["kind"] == "student"].sort_values("test_accuracy")
    (study,) = judgement.studies
    assert study.baseline == alone.index[1] and study.chosen == distilled["test_accuracy"].idxmax()
    assert study.candidates == 2 and set(distilled["pairs"]) == {2}


def test_images_a_second_of_a_real_run_are_images(trained):
    """Of a run of one step they are of that step: its batch is of 320 images."""
    for run_dir in trained.values():
        results = runs.read(run_dir)["results"]
        assert results["steps"] == 1
        assert results["images_per_second"] * results["training_seconds"] == pytest.approx(320, rel=0.05)
