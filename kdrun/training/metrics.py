"""What is measured on a whole split, from logits [n, classes] in float64."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64 [n, classes]."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


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


def agreement(logits: np.ndarray, other: np.ndarray) -> float:
    """Fraction of images to which both logits [n, classes] give the same class."""
    return float(np.mean(np.argmax(logits, axis=1) == np.argmax(other, axis=1)))
