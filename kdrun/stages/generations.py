"""Born-again networks: each generation of a network is taught by the one before (arXiv 1805.04770)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from kdrun.config.rules import integer
from kdrun.config.schema import for_role
from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.evaluation import metrics
from kdrun.objectives import selection
from kdrun.registry import register
from kdrun.runs import identity, predictions
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.stages import chain, checks
from kdrun.teachers import sources

log = logging.getLogger(__name__)


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where a generation cannot be trained, or another teacher was asked for than the one before."""
    dataset = checks.training(config, ("student", "student"), ("distill", "student"))
    _check_teacher(config)
    selection.check(config["objective"], dataset.num_classes)
    checks.teachers(for_role(config, "student"), dataset, None, config["student"]["model"])
    checks.cache_folder(config)


def of(config: Mapping) -> dict:
    """The identity of the configured run."""
    return identity.of_chain(config, datasets.fingerprint(config["data"]))


@register("stage", "generations", check=check, identity=of)
def generations(config: Mapping, run_dir: Path, *, generations: Annotated[int, integer(1, 100)]) -> dict:
    """Train the student alone, then `generations` times anew with the one before as teacher; each with the next seed.

    Says how each does on the test set, and the ensemble of all: the mean of their probabilities.
    """
    from kdrun.reports import tables
    from kdrun.teachers.supervisors import rehearse

    dataset_sha256 = datasets.fingerprint(config["data"])
    with recording(run_dir, config, of(config), dataset_sha256=dataset_sha256) as record:
        students = for_role(config, "student")
        rehearse(students, datasets.load(students["data"], config["seed"]), config["student"]["model"])
        found: list[Path] = []
        for number in range(generations + 1):
            part = {**config, "seed": config["seed"] + number}
            if found:
                part["teacher"] = {**config["teacher"], "run": str(found[-1])}
                depends = identity.of_distilled(part, dataset_sha256, [sources.weights_of(found[-1])])
            else:
                depends = identity.of_student(part, dataset_sha256)
            found.append(chain.run_or_reuse(part, run_dir, record, f"generation {number}", depends))
        rows = [{"name": f"generation {number}", **_tested(path)} for number, path in enumerate(found)]
        ensemble = {"name": f"ensemble of {len(found)}", "test": _ensemble(found), "run": ""}
        tables.networks([*rows, ensemble])
        record["results"] = {"generations": rows, "ensemble": ensemble}
        return record["results"]


def _tested(run_dir: Path) -> dict:
    results = runs.read(run_dir)["results"]
    return {"test": results["test"]["best"], "validation": results["validation"]["best"], "run": str(run_dir)}


def _ensemble(found: list[Path]) -> dict:
    logits = []
    for path in found:
        labels, of_one = predictions.read(path)
        logits.append(of_one)
    return metrics.evaluate(metrics.ensemble(logits), labels)


def _check_teacher(config: Mapping) -> None:
    """Raises InputError where another teacher was asked for than the generation before."""
    teacher = config["teacher"]
    if teacher["run"] != "auto" or teacher["logits"] or config["student"]["classifier"] == "teacher":
        raise InputError(
            "stage=generations: each generation is taught by the one before. Leave out teacher.run, teacher.logits and "
            "student.classifier."
        )
    if config["data"]["train_fraction"] < 1:
        raise InputError(
            "stage=generations: each generation has a seed of its own, by which data.train_fraction would draw other "
            "images. Set data.train_size instead."
        )
    if not selection.need_teacher(config["objective"]):
        raise InputError("stage=generations: this objective needs no teacher. Take objective=kd.")
