"""Resolution and checks of teachers: finished runs, files of logits, networks of other tools. No TensorFlow in here."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun.config.keys import MOST_PIXELS
from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.objectives import selection
from kdrun.runs import identity
from kdrun.runs import record as runs
from kdrun.runtime import once
from kdrun.storage import files
from kdrun.teachers import checkpoint, foreign, kinds, logits_file, overlap

# Overrides that a teacher does not depend on: the command that makes one goes without them.
_NOT_THE_TEACHERS = (
    *("stage=", "resume=", "data.transfer", "temperature", "alpha", "annealing=", "objective", "control="),
    *("student.", "distill.", "model@student", "teacher.shuffle", "teacher.overlap", "export.", "hydra"),
)


def are_needed(config: Mapping) -> bool:
    """Whether a student is to have a teacher: not where no objective needs one, or peers learn from each other."""
    return not config["distill"]["peers"] and selection.need_teacher(config["objective"])


def are_given(config: Mapping) -> bool:
    """Whether the config names teachers, instead of the configured one."""
    return config["teacher"]["run"] != "auto" or any(config["teacher"][key] for key in ("logits", "file"))


def is_run(source: Path) -> bool:
    """Whether a source of teaching is a run's directory."""
    return source.is_dir() and not kinds.is_foreign(source)


def resolve(config: Mapping, overrides: Sequence[str] = ()) -> list[Path]:
    """Resolve the teachers, each checked to be usable with the configured data: run directories, one file of logits, or
    what teacher.file names, each of any kind.

    `teacher.run=auto` is the newest
    completed teacher run with the configured teacher's fingerprint; otherwise a run directory, a folder of them, a
    sweep's name, or a list of such. Raises InputError where there is none, with the command that makes one, given the
    command line's `overrides`.
    """
    if config["teacher"]["file"] is not None:
        return _files(config)
    if config["teacher"]["logits"] is not None:
        return [logits_file.checked(config["teacher"]["logits"])]
    given = config["teacher"]["run"]
    if given == "auto":
        return [_matching(config, overrides)]
    found = [run for one in ([given] if isinstance(given, str) else given) for run in _runs(config["outputs"], one)]
    for run in found:
        check(config, run)
    return [Path(run) for run in found]


def _files(config: Mapping) -> list[Path]:
    """What teacher.file names. Raises InputError where one of them cannot teach, or another key names teachers, too."""
    teacher, given = config["teacher"], config["teacher"]["file"]
    if teacher["run"] != "auto" or teacher["logits"] is not None:
        raise InputError(
            "teacher.file, teacher.run and teacher.logits each say who teaches. Give one of them; a list of "
            "teacher.file may hold runs and files of logits, too."
        )
    found = [Path(one) for one in ([given] if isinstance(given, str) else given)]
    for path in found:
        try:
            kind, _, why = kinds.of(path).partition(": ")
        except OSError as error:
            raise InputError(f"teacher.file: {path} cannot be read ({error.strerror}). Give another file.") from error
        if kind == "unknown":
            raise InputError(
                f"teacher.file: {path} is none of a Keras 3 model, a SavedModel's folder, an ONNX or LiteRT model, a "
                f"file of logits and a run of kdrun{f': it is {why}' if why else ''}. See docs/teachers.md."
            )
        if kind == kinds.RUN:
            check(config, str(path), "teacher.file")
    return found


def weights_of(source: Path) -> str:
    """The sha256 of what a source of teaching says everything from."""
    return files.sha256(source / checkpoint.WEIGHTS) if is_run(source) else foreign.weights_of(source)


def learned_from(config: Mapping, source: Path) -> list[overlap.Range]:
    """The positions among the configured data's images that a source of teaching has trained on, as far as is known."""
    if not is_run(source) or not is_of_these_images(config, record := runs.read(source)):
        return []
    return overlap.trained_on(record)


def described(config: Mapping, source: Path) -> dict:
    """A source of teaching of the configured student as its run's record has it."""
    said: dict[str, Any] = {"run": str(source), "weights_sha256": weights_of(source), "identity": None}
    if is_run(source):
        said |= {"identity": runs.read(source).get("identity"), "trained_on": learned_from(config, source)}
    return said


def _runs(outputs: str, given: str) -> list[str]:
    """The run directories that one entry of teacher.run means."""
    for folder in (Path(given), Path(outputs) / "sweeps" / given):
        if (folder / "run.json").exists():
            return [str(folder)]
        if found := sorted(folder.glob("*/run.json")):
            return [str(path.parent) for path in found]
    return [given]


def _matching(config: Mapping, overrides: Sequence[str]) -> Path:
    found = runs.find(config["outputs"], identity.of_teacher(config, datasets.fingerprint(config["data"])))
    if found is None:
        kept = [o for o in overrides if not o.lstrip("+~").startswith(_NOT_THE_TEACHERS)]
        command = shlex.join(["kdrun", "stage=teacher", *kept])
        raise InputError(
            f"teacher.run=auto: no completed teacher run below {config['outputs']} matches this config. "
            f"Make one with: {command}. Or give teacher.run=RUN_DIRECTORY."
        )
    if other := runs.other_code(runs.read(found)):
        once.say(__name__, f"teacher.run=auto: {found}{other}")
    return found


def check(config: Mapping, given: str, key: str = "teacher.run", these_images: bool = False) -> None:
    """Raises InputError for a run, the value of `key`, that cannot teach with the configured data; `these_images`: of
    which it is to be."""
    record = runs.read(given)
    runs.check_leaves_network(record, f"{key}: {given}")
    if record["status"] != "completed":
        raise InputError(f"{key}: {given} is {record['status']}, not completed. Finish it or give another run.")
    if not is_of_these_images(config, record):
        _check_of_other_images(config, record, given, key, these_images)
    num_classes = datasets.load(config["data"]).num_classes
    if record["num_classes"] != num_classes:
        raise InputError(
            f"{key}: {given} tells {record['num_classes']} classes apart, this config's data has {num_classes}. "
            "Give a teacher with the same classes."
        )
    if not 1 <= (size := record["config"]["data"]["image_size"]) <= MOST_PIXELS:
        raise InputError(
            f"{key}: {given} says that it was trained on images of {size} pixels a side; kdrun takes 1 to "
            f"{MOST_PIXELS}. Give another run."
        )
    damaged = runs.damaged(Path(given), record)
    if damaged:
        raise InputError(f"{key}: {given}: {', '.join(damaged)} is not what run.json says. Give another run.")


def is_of_these_images(config: Mapping, record: Mapping) -> bool:
    """Whether a run was trained on the configured data, split alike."""
    return record.get("dataset_sha256") in datasets.known_as(config["data"])


def _check_of_other_images(config: Mapping, record: Mapping, given: str, key: str, these_images: bool) -> None:
    """Raises InputError for a run of other data, unless its classes are the same, by name, and so are its channels, and
    it need not be of `these_images`."""
    theirs, recorded = record["config"]["data"], record.get("dataset_sha256")
    split = {"split": theirs.get("split", "first"), "split_seed": theirs.get("split_seed", 0)}
    if recorded in datasets.known_as({**config["data"], **split, "test_size": theirs.get("test_size")}):
        words = f"data.split={split['split']}" + f" data.split_seed={split['split_seed']}" * (split["split"] != "first")
        raise InputError(
            f"{key}: {given} was trained on these images, split by {words}. Add {words} "
            f"data.validation_size={theirs.get('validation_size')}, or give another teacher."
        )
    dataset = datasets.load(config["data"])
    names, channels = list(dataset.class_names), dataset.train.images.shape[3]
    have_names = names != [str(number) for number in range(len(names))]  # else they are said to be alike by nobody
    is_alike = record.get("class_names") == names and record.get("image_shape", [None])[-1] == channels
    if have_names and is_alike and not these_images:
        once.say(
            __name__,
            f"{key}: {given} was trained on other images ({theirs['name']}) of the same classes. Whether these that "
            "validate the student are among them is not known",
        )
        return
    otherwise = "" if these_images else ", or one whose classes have the same names in the same order"
    raise InputError(
        f"{key}: {given} was trained on {theirs['name']} (sha256 {str(recorded)[:12]}), this config is for "
        f"{config['data']['name']} ({dataset.sha256[:12]}). Give a run of the same dataset, split alike{otherwise}."
    )
