"""A contact sheet: some pictures of each class."""

import numpy as np
from matplotlib.figure import Figure

from kdrun.data.datasets import Dataset
from kdrun.reports.figures import drawable, smaller

_COLUMNS = 10
_MOST_CLASSES = 40


def draw(dataset: Dataset) -> Figure:
    """The first training images of each class, a row each, as large as they are: what a network is to tell apart."""
    classes = np.flatnonzero(np.bincount(dataset.train.labels, minlength=dataset.num_classes))[:_MOST_CLASSES]
    height, width, channels = smaller(dataset.train.images[:1]).shape[1:]
    tall, wide = height + 2, width + 2
    sheet = np.full((len(classes) * tall, _COLUMNS * wide, channels), 255, np.uint8)
    for row, label in enumerate(classes):
        places = np.flatnonzero(dataset.train.labels == label)[:_COLUMNS]
        for column, image in enumerate(smaller(dataset.train.images[places])):
            top, left = row * tall, column * wide
            sheet[top : top + height, left : left + width] = image
    names = drawable(dataset.class_names, 24)
    figure = Figure(figsize=(9, 1 + 0.65 * len(classes) * tall / wide))
    axes = figure.add_axes((0.2, 0.02, 0.78, 1 - 0.6 / figure.get_figheight() - 0.02))
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255, aspect="auto")
    axes.set_yticks([row * tall + height / 2 for row in range(len(classes))])
    axes.set_yticklabels([names[label] for label in classes], parse_math=False)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    more = dataset.num_classes - len(classes)
    title = f"{len(dataset.train.labels):,} training images" + (f"; {more} classes are not shown" if more else "")
    figure.text(0.5, 1 - 0.3 / figure.get_figheight(), title, ha="center", va="center", fontsize=10)
    return figure
