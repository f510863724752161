"""Run directories become a table, a row a run, from run.json, metrics.jsonl and predictions/test.npz alone."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from kdrun.comparison import texts
from kdrun.comparison.kinds import DISTILLED, TEACHER
from kdrun.config.schema import flatten
from kdrun.errors import InputError
from kdrun.evaluation import by_class, metrics
from kdrun.objectives import selection
from kdrun.runs import directory, predictions, run_json
from kdrun.runs import record as runs
from kdrun.runs.identity import DISTILLING
from kdrun.storage import files, forms, manifest

_OVERRIDE = re.compile(r"[+~]*(?!hydra\b)[a-z]\S*(=|$)", re.IGNORECASE)  # one of kdrun's own keys
_LINE = {"epoch": forms.count, "split": forms.word, "accuracy": forms.fraction, str: forms.number}
_LATENCY = [f"batch_{size}_{name}" for size in (1, 128) for name in ("median", "p95")]
_OF_ONE_RUN = ("seed", "teacher_weights")
_DISTILLING_ALONE = (
    "stage",
    *DISTILLING,
    "teachers",
    "teacher_file",
    "teacher_inference_batch_size",
    "classifier",
    "peers",
    "objective_code",
)


def frame(*places: str | Path) -> pd.DataFrame:
    """A row for each run found in `places`: run directories, folders of them, or glob patterns.

    Columns: run, stage, status, problem (why a run cannot be used, else empty), seed, group, student and study (see
    `_identified`), right (whether each test image is classified so, bool [n]), what was measured, and the config's keys
    as `config.<key>`. Raises InputError where there is no run at all.
    """
    found = directory.found([str(place) for place in places])
    everything = [path for run_dir in found for path in (run_dir, *_parts(run_dir))]
    once = {path.resolve(): path for path in reversed(everything)}
    return pd.DataFrame([_row(path) for path in reversed(once.values())])


def _parts(run_dir: Path) -> Iterator[Path]:
    """The runs that a run has trained, or found completed, as its parts."""
    with suppress(InputError):
        record = runs.read(run_dir)
        results = record.get("results") or {}
        named = [*(record.get("stages") or {}).values(), *(row.get("run") for row in results.get("runs", ()))]
        for path in map(Path, filter(None, dict.fromkeys(named))):
            # seen from another folder, it is below the same outputs
            places = (path, *(outputs / Path(*path.parts[-2:]) for outputs in run_dir.parents[1:3]))
            yield from [place for place in places if (place / "run.json").exists()][:1]


def curves(run_dir: str | Path) -> pd.DataFrame:
    """metrics.jsonl: a row for each epoch and split, numbers but for the split. Raises InputError for anything else."""
    path = Path(run_dir) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in files.read(path).splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or not a run's metrics: {' '.join(str(error).split())}.") from error
    if wrong := forms.problem(lines, [_LINE]) or _of_no_epoch(lines):
        raise InputError(f"{path} is damaged, or not a run's metrics: {wrong}.")
    return pd.DataFrame(lines)


def _of_no_epoch(lines: Sequence[Mapping]) -> str | None:
    return None if any(line["split"] == "validation" for line in lines) else "no epoch is validated"


def _row(run_dir: Path) -> dict:
    """One run; `problem` says why it is not used, and no run, whatever it holds, is in the way of the others."""
    row = {"run": str(run_dir), "problem": ""}
    try:
        record = runs.read(run_dir)
        row |= {"stage": record["stage"], "status": record["status"], "command": _command(record)}
        row |= {f"config.{key}": _shown(value) for key, value in flatten(record["config"])}
        if not runs.kind(record):
            return row
        if record["status"] != "completed":
            why = texts.one_line(record.get("error") or f"{record['status']}, not completed")
            return row | {"problem": why}
        if changed := runs.damaged(run_dir, record):
            return row | {"status": "damaged", "problem": f"damaged: {', '.join(changed)} is not what run.json says"}
        measured = _measured(run_dir, record)
    except Exception as error:  # noqa: BLE001 - see above
        said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return row | {"status": "damaged", "problem": f"damaged: {texts.one_line(said)}"}
    return row | measured


def _command(record: Mapping) -> str:
    """The overrides of the command that made a run, as a command; none where a stage was called from Python."""
    try:
        words = shlex.split(record.get("command") or "")[1:]
    except ValueError:
        return ""
    own = all(_OVERRIDE.match(word) and word.isprintable() for word in words)
    return shlex.join(["kdrun", *words]) if words and own else ""


def _identified(record: Mapping, labels: np.ndarray) -> dict:
    """Whom a run is compared with.

    `group` is its setting: runs that differ from it in the seed, or the teacher's, alone. `student` holds those whose
    student is trained alike, distilled or not; `study` those whose student has the same network, data and number of
    steps, however it learns; all with the same test labels, int64 [n].
    """
    identity = {key: value for key, value in record["identity"].items() if key not in _OF_ONE_RUN}
    identity |= {"num_classes": record["num_classes"], "test_labels": hashlib.sha256(labels.tobytes()).hexdigest()}
    code = identity.get("code", {})  # an objective's is the distilled students' alone
    identity["code"] = {name: each for name, each in code.items() if not name.startswith("objective/")}
    identity["objective_code"] = {name: each for name, each in code.items() if name.startswith("objective/")}
    teachers = record.get("teachers", [])
    if teachers:
        identity["teacher"] = [
            {key: value for key, value in (teacher["identity"] or {}).items() if key not in _OF_ONE_RUN}
            or teacher["weights_sha256"]
            for teacher in teachers
        ]
    student = {key: value for key, value in identity.items() if key not in (*_DISTILLING_ALONE, "teacher")}
    if not student.get("mixup"):  # which a student alone has where it is something
        student.pop("mixup", None)
    study = {
        key: identity.get(key) for key in ("format", "model", "data", "dataset_sha256", "num_classes", "test_labels")
    }
    study |= {key: identity[key] for key in ("quantize",) if identity.get(key)}  # trained to be another network
    study |= {
        "code": {name: each for name, each in code.items() if name.startswith(("model/", "data"))},
        "steps": _steps(record),
    }
    return {
        "seed": record["seed"],
        "group": manifest.digest(identity)[:8],
        "student": manifest.digest(student)[:8],
        "study": manifest.digest(study)[:8] if runs.kind(record) != TEACHER else "",
        "identity": identity,
        "teacher": [teacher["run"] for teacher in teachers],
        "taught_by": tuple(teacher["weights_sha256"] for teacher in teachers),
        "weights": record["files"]["checkpoints/best.weights.h5"],
        "fingerprint": record.get("fingerprint") or manifest.digest(record["identity"]),
    }


def _steps(record: Mapping) -> int:
    """How many steps a run was to take: patience may have ended it before, in each seed elsewhere."""
    results = record["results"]
    return results["steps"] // max(1, results["validation"]["last"]["epoch"]) * record["identity"]["epochs"]


def _measured(run_dir: Path, record: Mapping) -> dict:
    stage = record["stage"]
    if wrong := forms.problem(record, run_json.TRAINED) or (
        runs.kind(record) == DISTILLED and forms.problem(record, run_json.DISTILLED)
    ):
        raise InputError(f"in run.json {wrong}")
    results, identity = record["results"], record["identity"]
    test, validation = results["test"]["best"], results["validation"]["best"]
    labels, logits = predictions.read(run_dir)
    if identity.get("stage") != stage or logits.shape != (test["count"], record["num_classes"]):
        raise InputError("its predictions and its identity are not those of its run.json")
    if (run_dir / "metrics.jsonl").exists():
        curves(run_dir)  # so that a figure need not fail of it
    latency = {f"latency_{name}": results.get("latency", {}).get(name) for name in _LATENCY}
    return _identified(record, labels.astype(np.int64)) | {
        "model": record["model"]["name"],
        "parameters": record["parameters"]["total"],
        "multiply_adds": record.get("multiply_adds"),
        "weights_bytes": (run_dir / "checkpoints" / "best.weights.h5").stat().st_size,
        "epochs": identity["epochs"],
        "held_out": not identity["data"].get("train_on_validation", False),
        "steps": results["steps"],
        "planned_steps": _steps(record),
        "overlap": record.get("overlap", 0),
        "made_by": texts.one_line(runs.made_by(record)),
        "objective": _names(identity.get("objective", {})) + " of peers" * bool(identity.get("peers")),
        "quantize": identity.get("quantize") or "",
        "control": (control := _control(identity, runs.kind(record))),
        "kind": "control" if control else runs.kind(record),
        "temperature": identity.get("temperature"),
        "alpha": identity.get("alpha"),
        "validation_accuracy": validation["accuracy"],
        "validation_cross_entropy": validation["cross_entropy"],
        "test_accuracy": test["accuracy"],
        "errors": test["errors"],
        "right": np.argmax(logits, axis=1) == labels,
        "balanced_accuracy": by_class.balanced(by_class.accuracies(labels, np.argmax(logits, axis=1), logits.shape[1])),
        "class_names": tuple(
            texts.one_line(name) or str(number) for number, name in enumerate(record.get("class_names", ()))
        ),
        "errors_last": results["test"]["last"]["errors"],
        "count": test["count"],
        "cross_entropy": test["cross_entropy"],
        "brier": metrics.brier_score(logits, labels),
        "calibration_error": metrics.calibration_error(logits, labels),
        "teacher_agreement": test.get("teacher_agreement"),
        "teacher_kl": test.get("teacher_kl"),
        "training_seconds": results["training_seconds"],
        "images_per_second": results["images_per_second"],
        **{name: value for name, value in latency.items() if value is not None},
    }


def _control(identity: Mapping, kind: str) -> str:
    """What a distilled student is a control for, if it is one: it has heard no teacher, or somebody else's answers."""
    if kind != DISTILLED:
        return ""
    if not selection.need_teacher(identity["objective"]):
        return _names(identity["objective"]).replace("_", " ")
    shuffle = identity["teachers"]["shuffle"]
    return {"none": "", "all": "shuffled teacher"}.get(shuffle, f"teacher shuffled {shuffle}".replace("_", " "))


def _names(objective: Mapping) -> str:
    return "+".join(texts.one_line(name) for name in selection.chosen(objective))


def _shown(value):
    """A value of a config as a column takes it: plain, and a text that can be written."""
    if isinstance(value, Sequence | Mapping) or (isinstance(value, int) and abs(value) >= 2**63):
        return str(value).encode(errors="replace").decode()
    return value
