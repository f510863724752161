"""Figures of a run's predictions, drawn with matplotlib."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdrun.data.datasets import Split
from kdrun.training.metrics import log_softmax


def predictions(split: Split, path: Path) -> dict[str, np.ndarray]:
    """Pictures uint8 [height, width, 3] of the predictions in a predictions/test.npz for `split`."""
    with np.load(path, allow_pickle=False) as saved:
        logits, labels = saved["logits"], saved["labels"]
    return {
        "confusion_matrix": _pixels(confusion_matrix(labels, np.argmax(logits, axis=1), logits.shape[1])),
        "misclassified": _pixels(misclassified(split.images, labels, logits)),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> Figure:
    """Counts by label (rows) and prediction (columns), coloured by each label's fraction."""
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels, predicted), 1)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions**0.5, cmap="Blues", vmin=0, vmax=1)  # the root makes rare confusions visible
    if num_classes <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if fractions[row, column] > 0.4 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(num_classes))
        axes.set_yticks(range(num_classes))
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(f"{np.trace(counts):,} of {len(labels):,} right")
    return figure


def misclassified(images: np.ndarray, labels: np.ndarray, logits: np.ndarray, most: int = 36) -> Figure:
    """The surest mistakes: images uint8 [n, height, width, channels] with label, prediction and its probability."""
    probabilities = np.exp(log_softmax(logits))
    predicted = np.argmax(logits, axis=1)
    confidence = probabilities[np.arange(len(labels)), predicted]
    wrong = np.flatnonzero(predicted != labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    columns = 6
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(8, 0.5 + 1.45 * rows), layout="constrained")
    figure.suptitle(f"{len(wrong):,} of {len(labels):,} wrong; the {len(chosen)} surest mistakes", fontsize=10)
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.axis("off")
        if place < len(chosen):
            index = chosen[place]
            axes.imshow(images[index].squeeze(-1) if images.shape[3] == 1 else images[index], cmap="gray_r")
            axes.set_title(f"{labels[index]} taken for {predicted[index]}\n{confidence[index]:.0%}", fontsize=7)
    return figure


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
