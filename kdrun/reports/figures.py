"""Figures of a run's predictions, drawn with matplotlib."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdrun.comparison import texts
from kdrun.data.datasets import Split
from kdrun.data.rows import Images
from kdrun.evaluation import by_class
from kdrun.evaluation.metrics import surest_mistakes
from kdrun.runs import predictions

_DRAWN = 112  # pixels a side, about, that a single image of a figure has at most
_NAMED = 60  # classes whose names can be read beside a confusion matrix


def of_predictions(split: Split, run_dir: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Pictures uint8 [height, width, 3] of a run's predictions for `split`, whose classes have `names`."""
    labels, logits = predictions.read(run_dir)
    return {
        "confusion_matrix": _pixels(confusion_matrix(labels, np.argmax(logits, axis=1), names)),
        "misclassified": _pixels(misclassified(split.images, labels, logits, names)),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Counts by label (rows) and prediction (columns), coloured by each label's fraction."""
    classes, shown = len(names), drawable(names)
    counts = by_class.confusion(labels, predicted, classes)
    named = classes <= _NAMED
    longest = max(map(len, shown)) if named else 0
    side, margin = max(5.3, 0.2 * min(classes, _NAMED)), 0.55 + 0.075 * longest  # inches, the margin for names
    width, height = margin + side + 0.15, margin + side + 0.4
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions**0.5, cmap="Blues", vmin=0, vmax=1)  # the root makes rare confusions visible
    if classes <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if fractions[row, column] > 0.4 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
    if named:
        axes.set_xticks(range(classes), shown, rotation=upright(shown), parse_math=False, fontsize=8)
        axes.set_yticks(range(classes), shown, parse_math=False, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(f"{np.trace(counts):,} of {len(labels):,} right")
    return figure


def misclassified(
    images: Images, labels: np.ndarray, logits: np.ndarray, names: Sequence[str], most: int = 36
) -> Figure:
    """The surest mistakes: images uint8 [n, height, width, channels] with label, prediction and its probability."""
    shown = drawable(names, 12)
    between = " " if max(map(len, shown)) <= 5 else "\n"  # there is room for three lines of about 22 characters
    chosen, predicted, confidence = surest_mistakes(logits, labels, most)
    wrong = np.count_nonzero(np.argmax(logits, axis=1) != labels)
    pictures = smaller(images[chosen])
    columns = 6
    rows = max(1, -(-len(chosen) // columns))
    height, width, channels = pictures.shape[1:]
    line = height // 4  # one line of text; two stand above each image
    tall, wide = height + 3 * line, width + 2 * line
    # one picture of all images: a subplot for each would take a second to draw
    sheet = np.full((rows * tall, columns * wide, channels), 255, np.uint8)
    figure = Figure(figsize=(8, 0.5 + 1.45 * rows))
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    axes.axis("off")
    for place, (index, other) in enumerate(zip(chosen, predicted, strict=True)):
        top, left = place // columns * tall + 2 * line, place % columns * wide + line
        sheet[top : top + height, left : left + width] = pictures[place]
        text = f"{shown[labels[index]]}{between}taken for {shown[other]}\n{confidence[place]:.0%}"
        axes.text(left + width / 2, top - 1, text, ha="center", va="bottom", fontsize=7, parse_math=False)
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255)
    title = f"{wrong:,} of {len(labels):,} wrong; the {len(chosen)} surest mistakes"
    figure.text(0.5, 1 - 0.2 / figure.get_figheight(), title, ha="center", va="center", fontsize=10)
    return figure


def smaller(images: np.ndarray) -> np.ndarray:
    """Images [..., height, width, channels] with at most about 112 pixels a side: every second or third one of larger
    ones."""
    step = max(1, max(images.shape[-3:-1]) // _DRAWN)
    return images[..., ::step, ::step, :]


def drawable(names: Sequence[str], most: int = 18) -> list[str]:
    """Classes' names as matplotlib can draw them, of at most so many characters; the class's number where its font
    lacks a letter of the name, or the name is written from right to left, which matplotlib may not do."""
    shown = [texts.short(name, most) for name in names]
    return [name if name and all(map(_has_letter, name)) else str(number) for number, name in enumerate(shown)]


def upright(names: Sequence[str]) -> int:
    """The degrees by which names below an axis are turned: as they are where all are short."""
    return 90 if max(map(len, names)) > 3 else 0


@cache
def _letters() -> frozenset[int]:
    """The characters of matplotlib's default font."""
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _has_letter(character: str) -> bool:
    return ord(character) in _letters() and unicodedata.bidirectional(character) not in ("R", "AL", "AN")


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
