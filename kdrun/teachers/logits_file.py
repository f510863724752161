"""A file of logits as teacher: of any model of any framework, or of people. No TensorFlow in here."""

import logging
from pathlib import Path

import numpy as np

from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.storage import arrays
from kdrun.teachers import kinds

log = logging.getLogger(__name__)

_ROUNDING = 0.01  # of a sum of probabilities: float16 is as coarse as that
SPLITS = ("train", "validation", "test")


def checked(given: str) -> Path:
    """The value of teacher.logits. Raises InputError where it is no file, a run's directory among others."""
    path = Path(given)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "not there"
        raise InputError(
            f"teacher.logits: {given} is {kind}. Give an .npz file of logits; for a run: teacher.run={given}"
        )
    if kinds.is_foreign(path):
        raise InputError(f"teacher.logits: {given} is {kinds.FOREIGN[kinds.of(path)].name}. Give teacher.file={given}")
    return path


def is_one(source: Path) -> bool:
    """Whether a source of teaching is a file of logits."""
    return source.is_file() and not kinds.is_foreign(source)


def logits(path: Path, dataset: datasets.Dataset, quietly: bool = False) -> dict[str, np.ndarray]:
    """The logits in a .npz file: train, validation and test, each float32 [n, classes] in the split's order.

    Where the file holds probabilities, their logarithm, which is said unless `quietly`: softmax gives them back.

    Its `order` is the dataset's (see datasets.order): logits of other images, or of the same in another order, are not
    taken for these. Raises InputError for a file that does not fit.
    """
    advice, order, found = "Give an .npz file with train, validation, test and order.", datasets.order(dataset), {}
    file = arrays.Npz(path, (*SPLITS, "order"), advice, "teacher.logits: ")
    for split in SPLITS:
        header, shape = file.headers[split], (len(getattr(dataset, split).labels), dataset.num_classes)
        if header.shape != shape or header.dtype.kind != "f":
            raise InputError(
                f"teacher.logits: {path}: {split} is {header.dtype} {list(header.shape)}; it must be floats of shape "
                f"{list(shape)}."
            )
    if (header := file.headers["order"]).shape != () or header.dtype.kind != "U":
        raise InputError(
            f"teacher.logits: {path}: order is {header.dtype} {list(header.shape)}; it must be one text, what "
            "kdrun.data.datasets.order(...) gives."
        )
    read = file.read()
    probabilities = [split for split in SPLITS if are_probabilities(read[split])]
    if probabilities and len(probabilities) < len(SPLITS):
        raise InputError(
            f"teacher.logits: {path}: {', '.join(probabilities)} holds probabilities, and the other splits do not. "
            "Give logits for all of them."
        )
    for split in SPLITS:
        try:
            found[split] = arrays.float32(logarithm(read[split]) if probabilities else read[split])
        except ValueError as error:
            raise InputError(f"teacher.logits: {path}: {split} is {error}. Give other logits.") from error
    if probabilities and not quietly:
        log.info("teacher.logits: %s holds probabilities, not logits: their logarithm is taken", path)
    if (theirs := read["order"].item()) != order:
        raise InputError(
            f"teacher.logits: {path} is of other images, or of these in another order: its order is "
            f"{theirs[:12]!r}, this config's data has {order}. Make it from kdrun.data.datasets.load(...)."
        )
    return found


def are_probabilities(array: np.ndarray) -> bool:
    """Whether every row's values are none below zero and sum to 1, but for rounding: logits do not."""
    sums = array.sum(axis=1, dtype=np.float64)
    return bool((array >= 0).all() and (np.abs(sums - 1) < _ROUNDING).all())


def logarithm(probabilities: np.ndarray) -> np.ndarray:
    """Logits whose softmax gives these probabilities, float64."""
    smallest = np.finfo(np.float32).tiny  # of a probability that was rounded to zero
    return np.log(np.maximum(probabilities.astype(np.float64), smallest))
