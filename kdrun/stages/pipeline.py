"""Teacher, student alone, distilled student, and how they compare."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from kdrun.stages.compare import compared
from kdrun.teachers import cache, overlap, sources

log = logging.getLogger(__name__)


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where one of the three cannot be trained."""
    dataset = checks.training(config, ("teacher", "teacher"), ("student", "student"), ("distill", "student"))
    selection.check(config["objective"], dataset.num_classes)
    students, teacher = for_role(config, "student"), config["teacher"]
    found: list[Path] | None = None  # a teacher that is trained first
    if teacher["run"] != "auto":
        found = sources.resolve(config, overrides) if sources.are_needed(config) else []
    if teacher["logits"] or (found is not None and len(found) > 1):
        raise InputError("stage=pipeline takes one teacher's run. For others, run stage=distill.")
    checks.teachers(students, dataset, found, teacher["model"])
    if found is None and not config["distill"]["peers"]:
        overlap.check(students, overlap.configured(config), "The configured teacher")
    checks.cache_folder(config)


def of(config: Mapping) -> dict:
    """The identity of the configured run."""
    return identity.of_chain(config, datasets.fingerprint(config["data"]))


@register("stage", "pipeline", check=check, identity=of)
def pipeline(config: Mapping, run_dir: Path) -> dict:
    """Run, or find completed, the three training stages, then compare them on the test set."""
    from kdrun.reports import tables
    from kdrun.runtime import precision
    from kdrun.teachers import outputs
    from kdrun.teachers.supervisors import rehearse

    dataset_sha256 = datasets.fingerprint(config["data"])
    with recording(run_dir, config, of(config), dataset_sha256=dataset_sha256) as record:
        students = for_role(config, "student")
        if config["teacher"]["run"] == "auto":
            rehearse(students, datasets.load(students["data"], config["seed"]), config["teacher"]["model"])
            its_own = identity.of_teacher(config, dataset_sha256)
            teacher_dir = chain.run_or_reuse(config, run_dir, record, "teacher", its_own)
        else:
            teacher_dir = Path(config["teacher"]["run"])
        config = {**config, "teacher": {**config["teacher"], "run": str(teacher_dir)}}
        students = for_role(config, "student")
        teachers = sources.resolve(config) if sources.are_needed(config) else []
        distilled = identity.of_distilled(config, dataset_sha256, [sources.weights_of(each) for each in teachers])
        if teachers and cache.wanted(students) and chain.reusable(config, distilled) is None:
            precision.prepare_machine()
            # now, so that the teacher is out of memory before a student is in it
            outputs.cached(students, teacher_dir, datasets.load(students["data"], config["seed"]))
        found = {"teacher": teacher_dir}
        for depends in (identity.of_student(config, dataset_sha256), distilled):
            name = depends["stage"]
            found[name] = chain.run_or_reuse(config, run_dir, record, name, depends)
        rows = [_row(stage, path, found["teacher"]) for stage, path in found.items()]
        tables.comparison(rows)
        record["results"] = {"runs": rows, **compared(config, list(found.values()), run_dir, table=False)}
        return record["results"]


def _row(stage: str, run_dir: Path, teacher_dir: Path) -> dict:
    record = runs.read(run_dir)
    results = record["results"]
    logits, teacher_logits = (predictions.read(path)[1] for path in (run_dir, teacher_dir))
    return {
        "stage": stage,
        "parameters": record["parameters"]["total"],
        "test": results["test"]["best"],
        "test_last": results["test"]["last"],
        "teacher_agreement": metrics.agreement(logits, teacher_logits),
        "steps": results["steps"],
        "training_seconds": results["training_seconds"],
        "seconds_to_first_step": results["seconds_to_first_step"],
        "images_per_second": results["images_per_second"],
        "run": str(run_dir),
    }
