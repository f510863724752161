"""Metrics of a whole split, from logits [n, classes] in float64."""

from collections.abc import Sequence

import numpy as np

from kdrun.errors import Diverged


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64 [n, classes]."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def ensemble(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithm of the mean of several networks' probabilities, from the logits of each; float64 [n, classes]."""
    return np.logaddexp.reduce([log_softmax(each) for each in logits]) - np.log(len(logits))


def evaluate(logits: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray | None = None) -> dict[str, float]:
    """Accuracy, errors and mean cross-entropy; with a teacher, KL(teacher || student) at T = 1 and agreement with it.

    Means over the whole split, labels int [n]. Agreement is the fraction of images that both give the same class.
    """
    log_q = log_softmax(logits)
    predicted = np.argmax(logits, axis=1)
    errors = int(np.count_nonzero(predicted != labels))
    results = {
        "accuracy": 1.0 - errors / len(labels),
        "errors": errors,
        "count": len(labels),
        "cross_entropy": float(-np.mean(log_q[np.arange(len(labels)), labels])),
    }
    if teacher_logits is not None:
        log_p = log_softmax(teacher_logits)
        results["teacher_kl"] = float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
        results["teacher_agreement"] = agreement(logits, teacher_logits)
    return results


def check_finite(logits: np.ndarray, of: str) -> np.ndarray:
    """The logits [n, classes], for whose `of` an error speaks. Raises Diverged where one is not a finite number."""
    finite = np.isfinite(logits)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
        value = logits[bad[0]][~finite[bad[0]]][0]
        raise Diverged(
            f"The results diverged: {of}, {len(bad)} of {len(logits)} images have logits that are not finite numbers "
            f"(image {bad[0]}: {value}). Try precision=float32, a smaller optimizer.learning_rate or other weights."
        )
    return logits


def surest_mistakes(logits: np.ndarray, labels: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """At most so many images that are taken for a wrong class, the surest one first: their indices, int [k], what each
    is taken for, int [k], and its probability, float64 [k]."""
    predicted = np.argmax(logits, axis=1)
    wrong = np.flatnonzero(predicted != labels)
    sure = np.exp(log_softmax(logits[wrong]).max(axis=1))
    first = np.argsort(-sure, kind="stable")[:most]
    return wrong[first], predicted[wrong[first]], sure[first]


def agreement(logits: np.ndarray, other: np.ndarray) -> float:
    """Fraction of images to which both logits [n, classes] give the same class."""
    return float(np.mean(np.argmax(logits, axis=1) == np.argmax(other, axis=1)))


def brier_score(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance between probabilities and the label as one-hot vector (Brier 1950): from 0 to 2."""
    probabilities = np.exp(log_softmax(logits))
    probabilities[np.arange(len(labels)), labels] -= 1.0
    return float(np.mean(np.sum(probabilities**2, axis=1)))


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (arXiv 1706.04599, section 2): how far confidence is from accuracy, on average.

    Images fall into `bins` equal ranges of the predicted class's probability, (low, high]; each range's distance
    between mean confidence and accuracy is weighted by its number of images.
    """
    confidence, right, which = confidences(logits, labels, bins)
    counts = np.bincount(which, minlength=bins)
    gaps = np.bincount(which, confidence, bins) - np.bincount(which, right, bins)
    return float(np.abs(gaps).sum() / counts.sum())


def confidences(logits: np.ndarray, labels: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each image: its predicted class's probability, whether that class is right (0.0 or 1.0), and its bin."""
    confidence = np.exp(log_softmax(logits).max(axis=1))
    right = (np.argmax(logits, axis=1) == labels).astype(np.float64)
    return confidence, right, np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
