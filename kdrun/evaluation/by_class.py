"""Metrics of a split's classes, each by itself, and the mean in which every class counts the same."""

import numpy as np

from kdrun.evaluation import metrics

# of a network with more, run.json has no confusion matrix: of 1,000 classes it would be megabytes, and every run.json
# below `outputs` is read where a run is looked for. predictions/test.npz has what it is made of.
MOST_CONFUSED = 100


def accuracies(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """The fraction of each class's images that is predicted right, its recall: float64 [num_classes], NaN for a class
    without an image. Labels and predictions are integers [n]."""
    count = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    return np.divide(right, count, out=np.full(num_classes, np.nan), where=count > 0)


def balanced(of_classes: np.ndarray) -> float:
    """Balanced accuracy: the mean of classes' accuracies [num_classes], over those that have an image.

    As in Brodersen et al., The balanced accuracy and its posterior distribution (ICPR 2010), for any number of classes.
    """
    return float(np.nanmean(of_classes))


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each label (rows) are predicted as each class (columns): int64 [num_classes, num_classes]."""
    places = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def evaluate(logits: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray | None = None) -> dict:
    """What metrics.evaluate says, with balanced_accuracy and class_accuracy: a list, null for a class without image."""
    of_classes = accuracies(labels, np.argmax(logits, axis=1), logits.shape[1])
    return {
        **metrics.evaluate(logits, labels, teacher_logits),
        "balanced_accuracy": balanced(of_classes),
        "class_accuracy": [None if np.isnan(value) else value for value in of_classes.tolist()],
    }


def recorded_confusion(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[list[int]]]:
    """The confusion matrix as run.json has it, under its name; nothing where classes are too many for it."""
    classes = logits.shape[1]
    if classes > MOST_CONFUSED:
        return {}
    return {"confusion": confusion(labels, np.argmax(logits, axis=1), classes).tolist()}
