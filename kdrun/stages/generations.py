"""Born-again networks: each generation of a network is taught by the one before (arXiv 1805.04770)."""

import logging
from collections.abc import Mapping
from pathlib import Path

from kdrun.data import datasets
from kdrun.evaluation import metrics
from kdrun.registry import register
from kdrun.reports import tables
from kdrun.runs import predictions
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.stages import chain
from kdrun.stages.distill import rehearse
from kdrun.teachers import checkpoint

log = logging.getLogger(__name__)


@register("stage", "generations")
def generations(config: Mapping, run_dir: Path) -> dict:
    """Train the student alone, then `generations` times anew with the one before as teacher; each with the next seed.

    Says how each does on the test set, and the ensemble of all: the mean of their probabilities.
    """
    dataset_sha256 = datasets.fingerprint(config["data"])
    depends = runs.chain_identity(config, dataset_sha256)
    with recording(run_dir, config, depends, dataset_sha256=dataset_sha256) as record:
        students = runs.seen(config, "distill")
        rehearse(students, datasets.load(students["data"], config["seed"]), config["student"]["model"])
        found: list[Path] = []
        for number in range(config["generations"] + 1):
            stage = "distill" if found else "student"
            part = {**config, "stage": stage, "seed": config["seed"] + number}
            weights = []
            if found:
                part["teacher"] = {**config["teacher"], "run": str(found[-1])}
                weights = [checkpoint.weights_of(found[-1])]
            identity = runs.identity(part, stage, dataset_sha256, weights)
            found.append(chain.link(part, run_dir, record, f"generation {number}", identity))
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
