"""What networks take for what, by name, as the comparison's page shows it: the matrix, the most frequent confusions and
the surest mistakes, as pictures."""

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import image

from kdrun.comparison import texts
from kdrun.config.schema import ALL_IMAGES
from kdrun.data import datasets
from kdrun.data.rows import Images
from kdrun.errors import InputError
from kdrun.evaluation import by_class, metrics
from kdrun.reports import figures
from kdrun.runs import predictions
from kdrun.runs import record as run_records

log = logging.getLogger(__name__)

_NAME = 40  # characters of a name below a picture


class Cell(NamedTuple):
    """Images of a label that are predicted as a class, the mean over networks, and their fraction of the label's."""

    images: float
    share: float


class Confusion(NamedTuple):
    """Images of one label, by name, that are taken for another."""

    label: str
    predicted: str
    cell: Cell


class Mistake(NamedTuple):
    """A picture, as a PNG file's bytes in base64, with its label, what it is taken for, and how sure that is."""

    picture: str
    label: str
    predicted: str
    probability: float


def matrix(labels: np.ndarray, predicted: Sequence[np.ndarray], classes: int) -> list[list[Cell]] | None:
    """The confusion matrix, rows being labels, of networks' predictions, int [n] each; None for too many classes to
    look at."""
    if classes > by_class.MOST_CONFUSED:
        return None
    counts = np.mean([by_class.confusion(labels, one, classes) for one in predicted], axis=0)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [list(map(Cell, *row)) for row in zip(counts.tolist(), shares.tolist(), strict=True)]


def most_frequent(
    labels: np.ndarray, predicted: Sequence[np.ndarray], names: Sequence[str], most: int = 20
) -> list[Confusion]:
    """The confusions of the most images in networks' predictions, int [n] each, of however many classes."""
    classes, images = len(names), np.bincount(labels, minlength=len(names))
    pairs = np.concatenate([classes * labels.astype(np.int64) + one for one in predicted])
    pairs, counts = np.unique(pairs[pairs // classes != pairs % classes], return_counts=True)
    found = []
    for place in np.argsort(-counts, kind="stable")[:most]:
        label, other = divmod(int(pairs[place]), classes)
        count = float(counts[place] / len(predicted))
        found.append(Confusion(names[label], names[other], Cell(count, count / int(images[label]))))
    return found


def mistakes(run: str, images: Images, names: Sequence[str], most: int = 24) -> list[Mistake]:
    """A run's surest mistakes among its test images, by name."""
    labels, logits = predictions.read(run)
    chosen = zip(*metrics.surest_mistakes(logits, labels, most), strict=True)
    names = [texts.short(name, _NAME) for name in names]
    return [
        Mistake(_png(images[index]), names[labels[index]], names[predicted], float(probability))
        for index, predicted, probability in chosen
    ]


def test_images(run: str, at_hand: Mapping) -> Images | None:
    """The images that a run was tested on, uint8 [n, height, width, channels]; None, and a line of the log, where its
    data are gone or are not what they were.

    A run may be somebody else's. What is to be decoded into a store of its choice is not looked at, unless it is the
    data that the command itself names, `at_hand`.
    """
    try:
        record = run_records.read(run)
        data = {**record["config"]["data"], **ALL_IMAGES}
        if "store" in data and any(data.get(key) != at_hand.get(key) for key in ("name", "path", "store")):
            raise InputError(f"they are shown when this command has the same data={data['name']} data.path=...")
        dataset = datasets.load(data)
        if record.get("dataset_sha256") not in datasets.known_as(data):
            raise InputError("its data have changed since")
        if not np.array_equal(dataset.test.labels, predictions.read(run)[0]):
            raise InputError("its data have other test labels")
    except (OSError, KeyError, TypeError, ValueError, IndexError, InputError) as error:
        log.info("compare: no pictures of test images: %s: %s", run, error)
        return None
    return dataset.test.images


def _png(pixels: np.ndarray) -> str:
    """An image uint8 [height, width, channels], made smaller where it is large, as a PNG file in base64."""
    pixels = figures.smaller(pixels)
    memory = io.BytesIO()
    image.imsave(memory, pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    return base64.b64encode(memory.getvalue()).decode()
