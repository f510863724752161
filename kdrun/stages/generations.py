"""Born-again networks: each generation of a network is taught by the one before (arXiv 1805.04770)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from kdrun.config.rules import integer
from kdrun.config.schema import for_role
from kdrun.data import batches, datasets, transfer
from kdrun.errors import InputError
from kdrun.evaluation import by_class, metrics
from kdrun.objectives import selection
from kdrun.registry import register
from kdrun.runs import identity, predictions
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.stages import chain, checks, seeds, work
from kdrun.stages.compare import compared
from kdrun.teachers import sources

log = logging.getLogger(__name__)


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where a generation cannot be trained, or another teacher was asked for than the one before."""
    dataset = checks.training(config, ("student", "student"), ("distill", "student"))
    _check_teacher(config)
    seeds.check(config)
    selection.check(config["objective"], dataset.num_classes)
    checks.teachers(for_role(config, "student"), dataset, None, config["student"]["model"])
    checks.cache_folder(config)


def of(config: Mapping) -> dict:
    """The identity of the configured run."""
    return identity.of_chain(config, *transfer.fingerprints(config["data"]))


@register("stage", "generations", check=check, identity=of, needs_tensorflow=False, has_parts=True, takes_seeds=True)
def generations(config: Mapping, run_dir: Path, *, generations: Annotated[int, integer(1, 100)]) -> dict:
    """Train the student alone, then `generations` times anew with the one before as teacher; each with a seed of its
    own.

    Says how each does on the test set, and the ensemble of all: the mean of their probabilities. Over several seeds, a
    generation of all seeds is trained before the next one, and the first is compared with those that came later.
    """
    from kdrun.reports import tables

    dataset_sha256, others = transfer.fingerprints(config["data"])
    with recording(run_dir, config, of(config), dataset_sha256=dataset_sha256) as record:
        _rehearse(config)
        of_seeds: dict[int, list[Path]] = {seed: [] for seed in seeds.of(config)}
        with chain.parts_of(config, run_dir, record, len(of_seeds)) as parts:
            for number in range(generations + 1):
                for place, (seed, found) in enumerate(of_seeds.items()):
                    part = {**config, "seed": batches.relative_seed(seed, number)}
                    depends = identity.of_student(part, dataset_sha256, others)
                    if found:
                        part["teacher"] = {**config["teacher"], "run": str(found[-1])}
                        weights = [sources.weights_of(found[-1])]
                        depends = identity.of_distilled(part, dataset_sha256, weights, others)
                    name = f"generation {number}" + (f", seed {seed}" if place else "")
                    found.append(parts.start(name, part, depends))
                parts.wait()
        rows, ensembles = [], []
        for place, (seed, found) in enumerate(of_seeds.items()):
            suffix = f", seed {seed}" if place else ""
            rows += [{"name": f"generation {number}{suffix}", **_tested(path)} for number, path in enumerate(found)]
            ensembles += [{"name": f"ensemble of {len(found)}{suffix}", "test": _ensemble(found), "run": ""}]
        tables.networks([*rows, *ensembles])
        record["results"] = {"generations": rows, "ensemble": ensembles[0]}
        if len(ensembles) > 1:
            every = [str(path) for found in of_seeds.values() for path in found]
            record["results"] |= {"ensembles": ensembles, **compared(config, every, run_dir)}
        return record["results"]


def _rehearse(config: Mapping) -> None:
    """Have objectives on features tried before the first generation is trained."""
    if selection.are_to_be_tried(config["objective"]):
        work.load_tensorflow(config)
        from kdrun.teachers.supervisors import rehearse

        students = for_role(config, "student")
        rehearse(
            students,
            datasets.load(students["data"], config["seed"]),
            config["student"]["model"],
            config["student"]["image_size"],
        )


def _tested(run_dir: Path) -> dict:
    results = runs.read(run_dir)["results"]
    return {"test": results["test"]["best"], "validation": results["validation"]["best"], "run": str(run_dir)}


def _ensemble(found: list[Path]) -> dict:
    logits = []
    for path in found:
        labels, of_one = predictions.read(path)
        logits.append(of_one)
    return by_class.evaluate(metrics.ensemble(logits), labels)


def _check_teacher(config: Mapping) -> None:
    """Raises InputError where another teacher was asked for than the generation before."""
    if sources.are_given(config) or config["student"]["classifier"] == "teacher":
        raise InputError(
            "stage=generations: each generation is taught by the one before. Leave out teacher.run, teacher.logits, "
            "teacher.file and student.classifier."
        )
    if config["teachers"] is not None or config["controls"]:
        raise InputError("stage=generations takes seeds, and neither teachers nor controls. Leave them out.")
    if config["data"]["train_fraction"] < 1:
        raise InputError(
            "stage=generations: each generation has a seed of its own, by which data.train_fraction would draw other "
            "images. Set data.train_size instead."
        )
    if not selection.need_teacher(config["objective"]):
        raise InputError("stage=generations: this objective needs no teacher. Take objective=kd.")
