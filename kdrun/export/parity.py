"""An exported file's answers, held against the network that it was made of, image by image. No TensorFlow in here."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from kdrun.comparison import intervals
from kdrun.evaluation import metrics

# by how much numbers may differ, of the largest of them, or of 1, before something else than rounding did it
ROUNDING = {"none": 1e-4, "float16": 1e-2}


class Parity(NamedTuple):
    """What the test images say of a file: plain values for a record, and the places of the images whose class is
    another one now, int [k], with the classes before and after, int [k]."""

    said: dict[str, Any]
    places: np.ndarray
    before: np.ndarray
    after: np.ndarray


def expected(logits: np.ndarray, output: str) -> np.ndarray:
    """What an exact file would give, [n, classes], of the network's logits: they themselves, or probabilities."""
    return logits if output == "logits" else np.exp(metrics.log_softmax(logits))


def held(logits: np.ndarray, found: np.ndarray, labels: np.ndarray, output: str) -> Parity:
    """A file's answers, float32 [n, classes], against the network's logits of the same images.

    The change of accuracy has a 95 % interval over images (paired; comparison.intervals.crossed), and the p-value of
    McNemar's exact test (McNemar 1947): of those images that one of both has right, are they as many on either side?
    """
    exact = expected(logits, output)
    before, after = exact.argmax(axis=1), found.argmax(axis=1)
    was, stays = before == labels, after == labels
    lost, won = int((was & ~stays).sum()), int((~was & stays).sum())
    change = intervals.crossed((stays.astype(np.int64) - was)[np.newaxis])
    places = np.flatnonzero(before != after)
    said = {
        "count": len(labels),
        "output": output,
        "largest_difference": float(np.abs(found - exact).max()),
        "agreement": float((before == after).mean()),
        "accuracy_before": float(was.mean()),
        "accuracy": float(stays.mean()),
        "change": {"gain": change.gain, "low": change.low, "high": change.high},
        "lost": lost,
        "won": won,
        "mcnemar_p": float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0,
    }
    return Parity(said, places, before[places], after[places])


def beyond_rounding(logits: np.ndarray, quantize: str, said: dict[str, Any]) -> float | None:
    """The most by which the numbers of a float file may differ, where they differ by more; else None, as for one that
    is not of floats."""
    if quantize not in ROUNDING:
        return None
    most = ROUNDING[quantize] * max(1.0, float(np.abs(expected(logits, said["output"])).max()))
    return None if said["largest_difference"] <= most else most
