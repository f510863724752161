"""A network of another tool as teacher: asked in a process of its own, and held against the labels before it teaches.

No TensorFlow in here: it is asked what it is worth before anything is made.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.config.schema import depended_on
from kdrun.data.datasets import Dataset
from kdrun.errors import InputError, KdrunError, text
from kdrun.runtime import devices, once, workers
from kdrun.runtime.child import Child, Lost
from kdrun.storage import files, manifest
from kdrun.teachers import cache, kinds, logits_file, pixels

log = logging.getLogger(__name__)

FORMAT = 1  # raise when the same file would no longer give the same logits
_WEAK = 1.5  # times chance: what is right less often is hardly looking at the same images
_PROCESS = "kdrun.teachers.foreign_process"
_ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": ""}

Outputs = Callable[[np.ndarray], np.ndarray]  # images, uint8 [n, height, width, channels] -> float32 [n, classes]
Ask = Callable[..., np.ndarray]  # the same, and a feature's name, or None for logits -> float32 [n, ...]

_features: dict[str, dict[str, tuple[int, ...]]] = {}  # of the networks that this process has asked for them


def check(config: Mapping, source: Path, dataset: Dataset) -> None:
    """Ask a teacher for the validation images, say how good it is on them, and keep its answers.

    Raises InputError where it cannot be asked, its outputs are not the data's classes, or it is hardly better than
    chance and teacher.weak does not allow that.
    """
    check_runtime(source)
    found, labels = validation(config, source, dataset), dataset.validation.labels
    accuracy = float((found.argmax(axis=1) == labels).mean())
    once.say(__name__, f"teacher.file: {source}: accuracy {accuracy:.4f} on {len(labels):,} validation images")


def check_runtime(source: Path) -> None:
    """Raises InputError where what runs a file is not installed."""
    form = _format(source)
    for package in form.packages:
        try:
            version(package)
        except PackageNotFoundError as error:
            raise InputError(
                f"teacher.file: {source} is {form.name}, which {package} runs. Install it: pip install "
                f"'kdrun[{form.extra}]'"
            ) from error


def weights_of(source: Path) -> str:
    """The sha256 of all that is in a file or folder."""
    if not source.is_dir():
        return files.sha256(source)
    held = sorted(path for path in source.rglob("*") if path.is_file())
    return manifest.digest({str(path.relative_to(source)): files.sha256(path) for path in held})


def cache_key(config: Mapping, source: Path, dataset: Dataset) -> dict:
    """Everything that a teacher's logits of all splits depend on, as plain values."""
    data = config["data"]
    return {
        **_key(config, source, dataset),
        "splits": {split: len(getattr(dataset, split).labels) for split in logits_file.SPLITS},
        "train_on_validation": data["train_on_validation"],
        "subset": {key: data[key] for key in ("train_size", "include_classes", "exclude_classes", "train_fraction")},
        "subset_seed": config["seed"] if data["train_fraction"] < 1 else None,
        "augment": depended_on(data)["augment"],
    }


def _key(config: Mapping, source: Path, dataset: Dataset) -> dict:
    teacher, form = config["teacher"], _format(source)
    return {
        "format": [cache.FORMAT, FORMAT, pixels.FORMAT],
        "file_sha256": weights_of(source),
        "runtime": {package: version(package) for package in form.packages},
        "input": dict(teacher["input"]),
        "classes": _chosen(teacher["classes"], dataset),
        "num_classes": dataset.num_classes,
        "dataset_sha256": dataset.sha256,
        "inference_batch_size": teacher["inference_batch_size"],
        "device": "GPU" if devices.visible() and "tensorflow" in form.packages else "CPU",
    }


def validation(config: Mapping, source: Path, dataset: Dataset) -> np.ndarray:
    """A teacher's logits of the validation images, float32 [n, classes]: kept ones, or asked for now."""
    labels = dataset.validation.labels
    key = {**_key(config, source, dataset), "splits": {"validation": len(labels)}}
    folder, shapes = Path(config["cache_dir"]), {"validation": (len(labels), dataset.num_classes)}

    @lru_cache
    def asked_now() -> np.ndarray:
        log.info("teacher.file: %s: asking it for the %s validation images", source, f"{len(labels):,}")
        if source.is_dir():
            log.info("teacher.file: %s is a SavedModel, which is code: its graph may read and write files", source)
        with asked(config, source, dataset) as logits:
            found = np.concatenate(list(_blocks(logits, dataset.validation.images, config)))
        _check_worth(config, source, dataset, found)
        return found

    if not cache.is_there(folder, key):
        asked_now()  # before anything is made
    try:
        found = cache.obtain(folder, key, shapes, lambda split: iter([asked_now()]))["validation"]
    except OSError as error:
        raise KdrunError(
            f"{folder} cannot take the teacher's answers ({error.strerror}). Make room, or set cache_dir to another "
            "folder."
        ) from error
    _check_worth(config, source, dataset, found)
    return found


def _blocks(logits: Outputs, images: Any, config: Mapping) -> Iterator[np.ndarray]:
    batch_size = config["teacher"]["inference_batch_size"]
    for start in range(0, len(images), batch_size):
        yield logits(np.asarray(images[start : start + batch_size]))


def have_features(source: Path) -> bool:
    """Whether networks of this kind may have features."""
    return kinds.of(source) == "keras"


def features(config: Mapping, source: Path, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """The shape of each of a teacher's features for one image, by name, in order. Raises InputError."""
    key = manifest.digest(_key(config, source, dataset))
    if key not in _features:
        with _process(config, source) as ask:
            answer, _ = ask({})
            _features[key] = {name: tuple(shape) for name, shape in answer["features"].items()}
    return _features[key]


@contextmanager
def asked(config: Mapping, source: Path, dataset: Dataset) -> Iterator[Ask]:
    """While inside, a process that gives a teacher's logits of images, or a feature by its name. Raises InputError for
    whatever goes wrong there, in one line."""
    with _process(config, source) as ask:

        def outputs(images: np.ndarray, feature: str | None = None) -> np.ndarray:
            told = {"shape": images.shape, "feature": feature}
            answer, payload = ask(told, np.ascontiguousarray(images).tobytes())
            return np.frombuffer(payload, np.float32).reshape(answer["shape"])

        @lru_cache
        def logits() -> Outputs:
            first = np.asarray(dataset.validation.images[: config["teacher"]["inference_batch_size"]])
            return _decoded(source, dataset, config["teacher"]["classes"], outputs, outputs(first))

        yield lambda images, feature=None: outputs(images, feature) if feature else logits()(images)


@contextmanager
def _process(config: Mapping, source: Path) -> Iterator[Callable[..., tuple[dict, bytes]]]:
    """While inside, a process that has loaded a teacher, as a function of what it is told, which is answered."""
    teacher = config["teacher"]
    batch_size = teacher["inference_batch_size"]
    told: dict[str, Any] = {"kind": kinds.of(source), "path": str(source.resolve()), "input": dict(teacher["input"])}
    told |= {"batch_size": batch_size, "memory": workers.available_memory()}
    with Child(_PROCESS, _ENVIRONMENT) as process:

        def ask(told: Mapping, payload: bytes = b"") -> tuple[dict, bytes]:
            try:
                return process.ask(told, payload, teacher["time_limit"])
            except Lost as error:
                advice = "Is the file whole? A slow network may have a longer teacher.time_limit."
                raise InputError(f"teacher.file: {source}: the process that runs it {error}. {advice}") from error
            except KdrunError as error:
                raise InputError(f"teacher.file: {source}: {text(error, 600)}") from error

        answer, _ = ask(told)
        once.say(__name__, f"teacher.file: {source} is {_format(source).name}; it is given {answer['input']}")
        yield ask


def _decoded(source: Path, dataset: Dataset, classes: Any, outputs: Outputs, first: np.ndarray) -> Outputs:
    """A function from images to logits of the data's classes. `first` are some outputs, by which it is known whether
    they are probabilities."""
    chosen = _places(source, dataset, classes, first.shape[1])
    are_probabilities = logits_file.are_probabilities(first)
    if are_probabilities:
        once.say(__name__, f"teacher.file: {source} gives probabilities, not logits: their logarithm is taken")

    def logits(images: np.ndarray) -> np.ndarray:
        found = outputs(images)
        if not np.isfinite(found).all():
            raise InputError(
                f"teacher.file: {source}: what it says of {int((~np.isfinite(found)).any(axis=1).sum())} of "
                f"{len(found)} images is not finite. Is teacher.input as it was trained? Else give another teacher."
            )
        if are_probabilities:
            if not logits_file.are_probabilities(found):
                raise InputError(f"teacher.file: {source} gives probabilities of some images, and not of others.")
            found = logits_file.logarithm(found)
        return found[:, chosen].astype(np.float32)

    return logits


def _chosen(classes: Any, dataset: Dataset) -> list[int] | None:
    """Which output is each of the data's classes, by number; None: as they come. Raises InputError where names of
    outputs are not those of the data's classes."""
    if isinstance(classes, str):
        try:
            classes = [line.strip() for line in files.read(classes).decode().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise InputError(f"teacher.classes={classes} cannot be read ({text(error)}).") from error
    if classes is None or isinstance(classes[0], int):
        return classes
    missing = [name for name in dataset.class_names if classes.count(name) != 1]
    if missing:
        raise InputError(
            f"teacher.classes has {len(classes)} names of outputs, and the data's class {missing[0]!r} is "
            f"{classes.count(missing[0])} times among them. Name each of {', '.join(dataset.class_names)[:200]} once."
        )
    return [classes.index(name) for name in dataset.class_names]


def _places(source: Path, dataset: Dataset, classes: Any, outputs: int) -> list[int]:
    """The output of each class. Raises InputError where there are not as many, or it is not said which."""
    chosen = _chosen(classes, dataset)
    if chosen is None and outputs != dataset.num_classes:
        advice = (
            "Say which of them are ours: teacher.classes=[...], one number for each class, or the names of all."
            if outputs > dataset.num_classes
            else "Give a teacher that knows all classes."
        )
        raise InputError(
            f"teacher.file: {source} has {outputs} outputs, and the data have {dataset.num_classes} classes. {advice}"
        )
    chosen = list(range(outputs)) if chosen is None else chosen
    if len(chosen) != dataset.num_classes or max(chosen) >= outputs:
        raise InputError(
            f"teacher.classes={chosen}: it must be {dataset.num_classes} numbers, one for each class, from 0 to "
            f"{outputs - 1}: {source} has {outputs} outputs."
        )
    return chosen


def _check_worth(config: Mapping, source: Path, dataset: Dataset, logits: np.ndarray) -> None:
    labels, least = dataset.validation.labels, _WEAK / dataset.num_classes
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    if accuracy >= least or config["teacher"]["weak"] == "allow":
        return
    order, best = _best_order(logits, labels)
    chosen = _chosen(config["teacher"]["classes"], dataset) or range(len(order))
    in_order = ",".join(str(chosen[each]) for each in order)
    hint = f" With teacher.classes=[{in_order}] it would be {best:.4f}." if best > (1 + least) / 2 else ""
    raise InputError(
        f"teacher.file: {source}: accuracy {accuracy:.4f} on {len(logits):,} validation images, below {least:.4f}, 1.5 "
        "times chance. Nearly always its images are scaled otherwise (teacher.input.scale, mean, std), its channels "
        "are in another order (teacher.input.channels=bgr, layout), or its classes are (teacher.classes)."
        f"{hint} Set these, or teacher.weak=allow."
    )


def _best_order(logits: np.ndarray, labels: np.ndarray) -> tuple[list[int], float]:
    """Which output each class would have to be for the accuracy to be highest, and that accuracy."""
    from scipy.optimize import linear_sum_assignment

    said = np.zeros((logits.shape[1],) * 2, int)
    np.add.at(said, (labels, logits.argmax(axis=1)), 1)
    _, order = linear_sum_assignment(said, maximize=True)
    return order.tolist(), float(said[np.arange(len(order)), order].sum() / len(labels))


def _format(source: Path) -> kinds.Format:
    return kinds.FOREIGN[kinds.of(source)]
