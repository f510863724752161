"""Run directories become a table, a row a run, from run.json, metrics.jsonl and predictions/test.npz alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kdrun import config as rules
from kdrun import manifest, runs
from kdrun.errors import InputError
from kdrun.objectives import choosing
from kdrun.training import metrics

_NOT_THE_SEED = ("seed", "teacher_weights")
_DISTILLING_ALONE = (
    "stage",
    *runs.DISTILLING,
    "teachers",
    "teacher_inference_batch_size",
    "classifier",
    "mixup",
    "peers",
)


def frame(*places: str | Path) -> pd.DataFrame:
    """A row for each run found in `places`: run directories, folders of them, or glob patterns.

    Columns: run, stage, status, problem (why a run cannot be used, else empty), seed, group and student (runs that
    differ only in seed, and whose students are trained alike, have the same), what was measured, and the config's keys
    as `config.<key>`. Raises InputError where there is no run at all.
    """
    return pd.DataFrame([_row(run_dir) for run_dir in runs.found([str(place) for place in places])])


def predictions(run_dir: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels int [n] and the best weights' logits float32 [n, classes] on the test set."""
    with np.load(Path(run_dir) / "predictions" / "test.npz", allow_pickle=False) as saved:
        return saved["labels"], saved["logits"]


def curves(run_dir: str | Path) -> pd.DataFrame:
    """metrics.jsonl: a row for each epoch and split, numbers but for the split. Raises InputError for anything else."""
    path = Path(run_dir) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        table = pd.DataFrame(lines)
        for key in ("epoch", "accuracy"):
            table[key] = pd.to_numeric(table[key])
        table["split"] = table["split"].astype(str)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or not a run's metrics: {' '.join(str(error).split())}.") from error
    return table


def _row(run_dir: Path) -> dict:
    row = {"run": str(run_dir), "problem": ""}
    try:
        record = runs.read(run_dir)
    except InputError as error:
        return row | {"status": "damaged", "problem": str(error)}
    row |= {"stage": record["stage"], "status": record["status"], "command": record.get("command", "")}
    row |= {f"config.{key}": _shown(value) for key, value in rules.flatten(record["config"])}
    if record["stage"] not in runs.TRAINING:
        return row
    if record["status"] != "completed":
        return row | {"problem": str(record.get("error") or f"{record['status']}, not completed").splitlines()[0]}
    if changed := runs.damaged(run_dir, record):
        return row | {"status": "damaged", "problem": f"{', '.join(changed)} is not what run.json says"}
    try:
        return row | _identified(record) | _measured(run_dir, record)
    except (InputError, KeyError, TypeError, ValueError, OSError) as error:
        return row | {"status": "damaged", "problem": f"{type(error).__name__}: {error}"}


def _identified(record: Mapping) -> dict:
    """Whom a run is compared with: `group` holds the runs that differ from it in the seed alone, `student` those whose
    student has the same network, data, epochs and steps, distilled or not."""
    identity = {key: value for key, value in record["identity"].items() if key not in _NOT_THE_SEED}
    teachers = record.get("teachers", [])
    if teachers:
        identity["teacher"] = [
            {key: value for key, value in (teacher["identity"] or {}).items() if key not in _NOT_THE_SEED}
            or teacher["weights_sha256"]
            for teacher in teachers
        ]
    student = {key: value for key, value in identity.items() if key not in (*_DISTILLING_ALONE, "teacher")}
    return {
        "seed": record["seed"],
        "group": manifest.digest(identity)[:8],
        "student": manifest.digest(student)[:8],
        "identity": identity,
        "teacher": [teacher["run"] for teacher in teachers],
    }


def _measured(run_dir: Path, record: Mapping) -> dict:
    results = record["results"]
    test, validation = results["test"]["best"], results["validation"]["best"]
    labels, logits = predictions(run_dir)
    curves(run_dir)  # so that a figure need not fail of it
    return {
        "model": record["model"]["name"],
        "parameters": record["parameters"]["total"],
        "multiply_adds": record.get("multiply_adds"),
        "weights_bytes": (run_dir / "checkpoints" / "best.weights.h5").stat().st_size,
        "epochs": record["identity"]["epochs"],
        "held_out": not record["identity"]["data"].get("train_on_validation", False),
        "steps": results["steps"],
        "objective": "+".join(choosing.chosen(record["identity"].get("objective", {})))
        + " of peers" * bool(record["identity"].get("peers")),
        "control": (control := _control(record["identity"])),
        "kind": "control" if control else record["stage"],
        "temperature": record["identity"].get("temperature"),
        "alpha": record["identity"].get("alpha"),
        "validation_accuracy": validation["accuracy"],
        "validation_cross_entropy": validation["cross_entropy"],
        "test_accuracy": test["accuracy"],
        "errors": test["errors"],
        "count": test["count"],
        "cross_entropy": test["cross_entropy"],
        "brier": metrics.brier_score(logits, labels),
        "calibration_error": metrics.calibration_error(logits, labels),
        "teacher_agreement": test.get("teacher_agreement"),
        "teacher_kl": test.get("teacher_kl"),
        "training_seconds": results["training_seconds"],
        "images_per_second": results["images_per_second"],
        **{f"latency_{name}": value for name, value in results.get("latency", {}).items()},
    }


def _control(identity: Mapping) -> str:
    """What a distilled student is a control for, if it is one: it has heard no teacher, or somebody else's answers."""
    if identity["stage"] != "distill":
        return ""
    if not choosing.need_teacher(identity["objective"]):
        return "+".join(choosing.chosen(identity["objective"])).replace("_", " ")
    shuffle = identity["teachers"]["shuffle"]
    return {"none": "", "all": "shuffled teacher"}.get(shuffle, f"teacher shuffled {shuffle}".replace("_", " "))


def _shown(value):
    return str(value) if isinstance(value, Sequence | Mapping) and not isinstance(value, str) else value
