"""Accuracy by class, by name: one network beside others, and what distilling gained or lost of each class."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from kdrun.comparison import texts
from kdrun.comparison.kinds import ALONE, DISTILLED
from kdrun.evaluation import by_class as measures
from kdrun.reports import fitted
from kdrun.runs import predictions

log = logging.getLogger(__name__)

_LISTED = 20  # classes in the terminal; of more, the first and the last few
_ENDS = 5
_NAME = 24  # characters of a name in the terminal


class Row(NamedTuple):
    """A class: its name, its test images, the accuracy of each kind of network, NaN without images, and the gain of the
    distilled student over the student alone, NaN where there are not both."""

    name: str
    images: int
    accuracies: tuple[float, ...]
    gain: float


class ByClass(NamedTuple):
    """All classes; `balanced` is the mean over those that have test images, in which each of them counts the same."""

    kinds: tuple[str, ...]
    rows: tuple[Row, ...]
    balanced: Row


class Tested(NamedTuple):
    """What networks made of the same test images: labels, int [n], predictions, int [n] of each network by kind, and
    how many classes there are."""

    labels: np.ndarray
    predicted: Mapping[str, Sequence[np.ndarray]]
    num_classes: int


def tested(runs: Mapping[str, Sequence[str]]) -> Tested | None:
    """What runs, directories by kind, predicted for the test images of the last kind's first one; runs that were tested
    on others are left out. None for no run."""
    found = {kind: [predictions.read(run) for run in of_kind] for kind, of_kind in runs.items()}
    first = next((each[0] for each in reversed(found.values()) if each), None)
    if first is None:
        return None
    labels, logits = first
    predicted = {
        kind: [np.argmax(z, axis=1) for other, z in several if z.shape == logits.shape and (other == labels).all()]
        for kind, several in found.items()
    }
    return Tested(labels, {kind: several for kind, several in predicted.items() if several}, logits.shape[1])


def by_class(test: Tested, names: Sequence[str]) -> ByClass:
    """Accuracy by class of each kind of network: the mean over all of a kind.

    Classes that distilling helped most are first; where nothing was distilled, those of the lowest accuracy of the last
    kind. Those without an image are last.
    """
    labels, classes = test.labels, test.num_classes
    of_kinds = {
        kind: np.mean([measures.accuracies(labels, predicted, classes) for predicted in several], axis=0)
        for kind, several in test.predicted.items()
    }
    both = ALONE in of_kinds and DISTILLED in of_kinds
    gains = of_kinds[DISTILLED] - of_kinds[ALONE] if both else np.full(classes, np.nan)
    images = np.bincount(labels, minlength=classes)
    columns = np.stack([*of_kinds.values(), gains], axis=1)
    order = np.argsort(-gains if both else columns[:, -2], kind="stable")  # in which NaN is last
    rows = [_row(names[label], images[label], columns[label]) for label in order]
    balanced = _row("balanced accuracy", len(labels), columns[images > 0].mean(axis=0))
    return ByClass(tuple(of_kinds), tuple(rows), balanced)


def _row(name: str, images: int, columns: np.ndarray) -> Row:
    *accuracies, gain = columns.tolist()
    return Row(name, int(images), tuple(accuracies), gain)


def show(table: ByClass, headings: Mapping[str, str] | None = None) -> None:
    """Log the table, a line a class: of many classes, those with the most and the least gain, or accuracy."""
    shown = Table(title="Test set, accuracy by class", title_justify="left")
    shown.add_column("class", no_wrap=True, overflow="ellipsis", max_width=_NAME)
    has_gain = not math.isnan(table.balanced.gain)
    for heading in ("images", *((headings or {}).get(kind, kind) for kind in table.kinds), *["gain"] * has_gain):
        shown.add_column(heading, justify="right", no_wrap=True)

    def add(row: Row) -> None:
        cells = [percent(value) for value in row.accuracies] + [points(row.gain)] * has_gain
        shown.add_row(texts.short(row.name, _NAME), f"{row.images:,}", *cells)

    present = [row for row in table.rows if row.images]
    if len(table.rows) <= _LISTED:
        present = list(table.rows)
    hidden = len(present) - 2 * _ENDS if len(present) > _LISTED else 0
    for row in present[:_ENDS] if hidden else present:
        add(row)
    if hidden:
        shown.add_row(f"… {hidden:,} more", *[""] * (len(shown.columns) - 1))
        for row in present[-_ENDS:]:
            add(row)
    shown.add_section()
    add(table.balanced)
    log.info("\n%s", fitted.text(shown))
    if absent := sum(not row.images for row in table.rows):
        log.info("no test image of %d of %d classes: balanced accuracy is of the others", absent, len(table.rows))


def lowest(names: Sequence[str], test: Mapping, most: int = 3) -> str:
    """The classes of the lowest accuracy, by name, and balanced accuracy, in a line; `test` as in run.json."""
    found = {label: value for label, value in enumerate(test["class_accuracy"]) if value is not None}
    first = sorted(found, key=lambda label: found[label])[:most]
    said = ", ".join(f"{texts.short(names[label], _NAME)} {percent(found[label])}" for label in first)
    return f"balanced accuracy {percent(test['balanced_accuracy'])}; lowest of its classes: {said}"


def percent(value: float) -> str:
    """An accuracy from 0 to 1; a dash where there is none."""
    return f"{value:.2%}" if np.isfinite(value) else "–"


def points(gain: float) -> str:
    """A gain, 1 being all images, in points of accuracy; a dash where there is none."""
    return f"{100 * gain:+.2f}" if np.isfinite(gain) else "–"


def write_csv(table: ByClass, path: Path) -> None:
    """Write the table, a row a class, for spreadsheets: accuracies and gain from 0 to 1."""
    import pandas as pd

    rows = [(texts.csv(row.name), row.images, *row.accuracies, row.gain) for row in table.rows]
    pd.DataFrame(rows, columns=["class", "images", *table.kinds, "gain"]).to_csv(path, index=False)
