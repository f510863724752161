"""Figures of a run's predictions, drawn with matplotlib."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdrun.data.datasets import Split
from kdrun.data.rows import Images
from kdrun.evaluation.metrics import log_softmax
from kdrun.runs import predictions

_DRAWN = 112  # pixels a side, about, that a single image of a figure has at most


def of_predictions(split: Split, run_dir: Path) -> dict[str, np.ndarray]:
    """Pictures uint8 [height, width, 3] of a run's predictions for `split`."""
    labels, logits = predictions.read(run_dir)
    return {
        "confusion_matrix": _pixels(confusion_matrix(labels, np.argmax(logits, axis=1), logits.shape[1])),
        "misclassified": _pixels(misclassified(split.images, labels, logits)),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> Figure:
    """Counts by label (rows) and prediction (columns), coloured by each label's fraction."""
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels, predicted), 1)
    figure = Figure(figsize=(6, 6))
    axes = figure.add_axes((0.1, 0.08, 0.88, 0.86))
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


def misclassified(images: Images, labels: np.ndarray, logits: np.ndarray, most: int = 36) -> Figure:
    """The surest mistakes: images uint8 [n, height, width, channels] with label, prediction and its probability."""
    probabilities = np.exp(log_softmax(logits))
    predicted = np.argmax(logits, axis=1)
    confidence = probabilities[np.arange(len(labels)), predicted]
    wrong = np.flatnonzero(predicted != labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    step = max(1, max(images.shape[1:3]) // _DRAWN)
    shown = images[chosen][:, ::step, ::step]
    columns = 6
    rows = max(1, -(-len(chosen) // columns))
    height, width, channels = shown.shape[1:]
    line = height // 4  # one line of text; two stand above each image
    tall, wide = height + 3 * line, width + 2 * line
    # one picture of all images: a subplot for each would take a second to draw
    blank = 0 if channels == 1 else 255  # white in either colour map
    sheet = np.full((rows * tall, columns * wide, channels), blank, np.uint8)
    figure = Figure(figsize=(8, 0.5 + 1.45 * rows))
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    axes.axis("off")
    for place, index in enumerate(chosen):
        top, left = place // columns * tall + 2 * line, place % columns * wide + line
        sheet[top : top + height, left : left + width] = shown[place]
        text = f"{labels[index]} taken for {predicted[index]}\n{confidence[index]:.0%}"
        axes.text(left + width / 2, top - 1, text, ha="center", va="bottom", fontsize=7)
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray_r")
    title = f"{len(wrong):,} of {len(labels):,} wrong; the {len(chosen)} surest mistakes"
    figure.text(0.5, 1 - 0.2 / figure.get_figheight(), title, ha="center", va="center", fontsize=10)
    return figure


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
