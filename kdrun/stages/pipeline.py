"""Teacher, student alone, distilled student, and how they compare."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from kdrun.data import datasets
from kdrun.evaluation import metrics
from kdrun.registry import register
from kdrun.reports import tables
from kdrun.runs import predictions
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.runtime import precision
from kdrun.stages import chain
from kdrun.stages.compare import compared
from kdrun.stages.distill import rehearse
from kdrun.teachers import cache, checkpoint
from kdrun.teachers import outputs as answers

log = logging.getLogger(__name__)


@register("stage", "pipeline")
def pipeline(config: Mapping, run_dir: Path) -> dict:
    """Run, or find completed, the three training stages, then compare them on the test set."""
    dataset_sha256 = datasets.fingerprint(config["data"])
    depends = runs.chain_identity(config, dataset_sha256)
    with recording(run_dir, config, depends, dataset_sha256=dataset_sha256) as record:

        def run(stage: str, identity: Mapping) -> Path:
            return chain.link({**config, "stage": stage}, run_dir, record, stage, identity)

        if config["teacher"]["run"] == "auto":
            students = runs.seen(config, "distill")
            rehearse(students, datasets.load(students["data"], config["seed"]), config["teacher"]["model"])
        teacher_dir = _teacher(config, dataset_sha256, run)
        config = {**config, "teacher": {**config["teacher"], "run": str(teacher_dir)}}
        sources = checkpoint.sources(config)
        weights = [checkpoint.weights_of(source) for source in sources]
        identities = {stage: runs.identity(config, stage, dataset_sha256, weights) for stage in ("student", "distill")}
        students = runs.seen(config, "distill")
        if sources and cache.wanted(students) and chain.reusable(config, identities["distill"]) is None:
            precision.prepare_machine()
            # now, so that the teacher is out of memory before a student is in it
            answers.kept(students, teacher_dir, datasets.load(students["data"], config["seed"]))
        found = {"teacher": teacher_dir}
        for stage, identity in identities.items():
            found[stage] = run(stage, identity)
        rows = [_row(stage, path, found["teacher"]) for stage, path in found.items()]
        tables.comparison(rows)
        record["results"] = {"runs": rows, **compared(config, list(found.values()), run_dir, table=False)}
        return record["results"]


def _teacher(config: Mapping, dataset_sha256: str, run: Callable[[str, Mapping], Path]) -> Path:
    if config["teacher"]["run"] != "auto":
        return Path(config["teacher"]["run"])
    return run("teacher", runs.identity(config, "teacher", dataset_sha256))


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
