"""Figures of a comparison: readable in grey and for the colour-blind (Okabe and Ito's colours)."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdrun.comparison import gathering
from kdrun.comparison.kinds import DISTILLED
from kdrun.data.rows import Images
from kdrun.evaluation import by_class, metrics
from kdrun.reports.figures import drawable, upright
from kdrun.runs import predictions

# what is teacher, alone and distilled looks the same in every figure: colour, and line or marker for grey
STYLES: dict[str, dict[str, Any]] = {
    "teacher": {"color": "#009E73", "linestyle": "-.", "marker": "^", "label": "teacher"},
    "student": {"color": "#D55E00", "linestyle": "--", "marker": "s", "label": "student alone"},
    "control": {"color": "#777777", "linestyle": ":", "marker": "D", "label": "control"},
    "distill": {"color": "#0072B2", "linestyle": "-", "marker": "o", "label": "distilled student"},
}
_BINS = 15
_FEW = 10  # images of a bin: how many of them are right is chance
_LEFT_OUT = 0.1  # of a curve's epochs, by which the axis is not stretched
_WIDTH = 5.9  # inches, of a figure that stands beside others on the page
_NUMBERED = 8  # temperatures, or alphas, of a heat map whose cells have numbers in them
_RANKED = 3  # classes of an image that the teacher has second thoughts of
_LINE = 34  # characters of a setting's name in a line


def gains(
    groups: pd.DataFrame,
    margin: float,
    chosen: Collection[str],
    differing: Mapping[str, Mapping[str, str]],
    most: int = 30,
) -> Figure | None:
    """What each setting gains over the student alone: single seeds, the mean with its interval, the margin as a band.

    The first so many by validation, the `chosen` ones always; `differing` are keys by which settings are told apart,
    with their values. None where nothing was held against a student alone.
    """
    some = groups[groups["gain"].notna()]
    if some.empty:
        return None
    some = some.assign(chosen=some.index.isin(chosen)).sort_values(["chosen", "validation_accuracy"], ascending=False)
    some = some[:most][::-1]
    names = [
        f"{row['control'] or row['objective']}, T = {row['temperature']:g}, α = {row['alpha']:g}"
        + "".join(f", {key} = {value}" for key, value in differing.get(name, {}).items())
        + " (chosen)" * bool(row["chosen"])
        for name, row in some.iterrows()
    ]
    folded = [_folded(name) for name in names]
    height = max(0.36, 0.1 + 0.14 * max(1 + name.count("\n") for name in folded))
    figure = Figure(figsize=(_WIDTH, max(2.6, 1.2 + height * len(some))), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-100 * margin, 100 * margin, color="#BBBBBB", alpha=0.4, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8)
    for place, (_, row) in enumerate(some.iterrows()):
        style = STYLES[row["kind"]]
        singles = 100 * np.array(list(row["gains"].values()))
        axes.scatter(singles, np.full(len(singles), place + 0.22), s=12, color=style["color"], alpha=0.6, linewidths=0)
        low, high = (row["gain"] if np.isnan(row[key]) else row[key] for key in ("gain_low", "gain_high"))
        reach = 100 * np.array([[row["gain"] - low], [high - row["gain"]]])
        axes.errorbar(
            100 * row["gain"], place - 0.08, xerr=reach, capsize=3, color=style["color"], marker=style["marker"]
        )
    axes.set_yticks(range(len(some)), folded, fontsize=8, parse_math=False)  # somebody else's words
    axes.set_ylim(-0.7, len(some) - 0.3)
    axes.set_xlabel("gain over the student alone, points of test accuracy")
    _show_most(axes, some)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _folded(name: str) -> str:
    """A setting's name on several lines where it is long; a key stays with its value."""
    whole = name.replace(" = ", "\u00a0=\u00a0")  # at which nothing is broken
    return textwrap.fill(whole, _LINE, max_lines=4, placeholder=" …").replace("\u00a0", " ")


def _show_most(axes, rows: pd.DataFrame) -> None:
    """As wide as distilled students need; a control that is far off is an arrow with its gain."""
    of = rows[rows["kind"] != "control"] if (rows["kind"] != "control").any() else rows
    ends = [
        0.0,
        *of["gain_low"].dropna(),
        *of["gain_high"].dropna(),
        *(g for each in of["gains"] for g in each.values()),
    ]
    low, high = 100 * min(ends), 100 * max(ends)
    pad = 0.08 * (high - low) or 1.0
    axes.set_xlim(low - pad, high + pad)
    for place, (_, row) in enumerate(rows.iterrows()):
        gain = 100 * row["gain"]
        if not low - pad <= gain <= high + pad:
            text, side = (f"← {gain:+.2f}", 0.01) if gain < low else (f"{gain:+.2f} →", 0.99)
            inwards = "left" if gain < low else "right"
            axes.text(side, place, text, transform=axes.get_yaxis_transform(), ha=inwards, va="center", fontsize=8)


def heat_maps(groups: pd.DataFrame) -> Figure | None:
    """Mean accuracy by temperature and alpha, on validation and test; None for fewer than two cells.

    Of the objective with the most of them, controls left out. Where there are not too many, cells say it in numbers.
    """
    distilled = groups[groups["kind"] == DISTILLED]
    distilled = distilled[distilled["objective"].isin(distilled["objective"].mode()[:1])]
    if distilled[["temperature", "alpha"]].drop_duplicates().shape[0] < 2:
        return None
    temperatures, alphas = (sorted(distilled[key].unique()) for key in ("temperature", "alpha"))
    has_room = len(temperatures) <= _NUMBERED and len(alphas) <= _NUMBERED
    wide, high = (1.2, 0.62) if has_room else (0.4, 0.25)  # inches of a cell
    sides = max(_WIDTH, 2.2 + wide * len(temperatures)), max(2.6, 1.4 + high * len(alphas))
    figure = Figure(figsize=sides, layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("validation_accuracy", "test_accuracy"),
        ("validation accuracy, %", "test accuracy, %"),
        strict=True,
    ):
        values = 100 * distilled.pivot_table(index="alpha", columns="temperature", values=key, aggfunc="mean")
        counts = distilled.pivot_table(index="alpha", columns="temperature", values="n", aggfunc="sum")
        shown = axes.imshow(values, cmap="cividis", origin="lower", aspect="auto")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for row, column in np.ndindex(values.shape) if has_room else ():
            if np.isfinite(value := values.iloc[row, column]):
                text = f"{value:.2f}\nn = {counts.iloc[row, column]:.0f}"
                colour = "black" if value > middle else "white"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(temperatures)), [f"{t:.3g}" for t in temperatures], rotation=0 if has_room else 90)
        axes.set_yticks(range(len(alphas)), [f"{a:.3g}" for a in alphas])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("temperature")
        figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.axes[0].set_ylabel("alpha")
    return figure


def learning_curves(runs: Mapping[str, Sequence[str]]) -> Figure | None:
    """Validation accuracy by epoch: the mean over seeds and, as a band, from the lowest to the highest.

    The axis is not stretched to the lowest tenth of a curve's epochs, at least one of several: the first mostly.
    `runs` gives run directories by stage; those without metrics.jsonl are left out.
    """
    figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    lowest, highest = [], []
    for stage, style in STYLES.items():
        read = [gathering.curves(run) for run in runs.get(stage, ()) if (Path(run) / "metrics.jsonl").exists()]
        if not read:
            continue
        table = pd.concat(curve[curve["split"] == "validation"] for curve in read)
        by_epoch = 100 * table.groupby("epoch")["accuracy"].agg(["mean", "min", "max"])
        axes.plot(
            by_epoch.index, by_epoch["mean"], markersize=3, **{**style, "label": f"{style['label']} (n = {len(read)})"}
        )
        axes.fill_between(
            by_epoch.index, by_epoch["min"], by_epoch["max"], color=style["color"], alpha=0.2, linewidth=0
        )
        lowest.append(by_epoch["min"].quantile(_LEFT_OUT, interpolation="higher"))
        highest.append(by_epoch["max"].max())
    if not lowest:
        return None
    pad = 0.06 * (max(highest) - min(lowest)) or 1.0
    axes.set_ylim(min(lowest) - pad, max(highest) + pad)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy, %")
    axes.locator_params("x", integer=True)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def reliability(runs: Mapping[str, Sequence[str]]) -> Figure:
    """Accuracy against confidence on the test set, in bins, over all seeds of a kind's runs; mean calibration error.

    Bins of a few images are left out, unless all are so small.
    """
    figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="perfectly calibrated")
    for stage, style in STYLES.items():
        if not runs.get(stage):
            continue
        parts, errors = [], []
        for run in runs[stage]:
            labels, logits = predictions.read(run)
            parts.append(metrics.confidences(logits, labels, _BINS))
            errors.append(metrics.calibration_error(logits, labels))
        confidence, right, which = (np.concatenate(part) for part in zip(*parts, strict=True))
        counts = np.bincount(which, minlength=_BINS)
        filled = counts >= min(_FEW, counts.max())
        means = [np.bincount(which, values, _BINS)[filled] / counts[filled] for values in (confidence, right)]
        label = f"{style['label']}, ECE {np.mean(errors):.4f}"
        axes.plot(*means, markersize=4, **{**style, "label": label})
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def confusion_difference(distilled: Sequence[str], alone: Sequence[str], names: Sequence[str]) -> Figure:
    """Mean confusions of the distilled students less those of the students alone; blue is fewer, red is more. Classes
    have `names`."""
    difference = _confusions(distilled) - _confusions(alone)
    np.fill_diagonal(difference, 0)
    figure = Figure(figsize=(_WIDTH, 4.9), layout="constrained")
    axes = figure.subplots()
    most = max(float(np.abs(difference).max()), 1.0)
    coloured = axes.imshow(difference, cmap="RdBu_r", vmin=-most, vmax=most)
    classes = len(difference)
    if classes <= 20:
        for row, column in zip(*np.nonzero(difference), strict=True):
            value = difference[row, column]
            colour = "white" if abs(value) > 0.6 * most else "black"
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=6, color=colour)
        shown = drawable(names)
        axes.set_xticks(range(classes), shown, rotation=upright(shown), parse_math=False)
        axes.set_yticks(range(classes), shown, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title("errors: distilled less alone", fontsize=9)
    figure.colorbar(coloured, ax=axes, shrink=0.8)
    return figure


def what_the_teacher_knows(
    images: Images,
    labels: np.ndarray,
    teacher: np.ndarray,
    student: np.ndarray,
    temperature: float,
    names: Sequence[str],
    most: int = 8,
) -> Figure | None:
    """Test images of which the teacher has second thoughts: their label is one of its two best classes, and the second
    one is as likely as can be. Beside each, its label and the best classes: the teacher's probabilities at T = 1 and at
    the run's T, and the student's; None where the label is never among the two.

    Images uint8 [n, height, width, channels], logits [n, classes]; classes have `names`.
    """
    probabilities = np.exp(metrics.log_softmax(teacher))
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :_RANKED]
    doubted = np.flatnonzero((ranked[:, :2] == labels[:, None]).any(axis=1))
    second = probabilities[doubted, ranked[doubted, 1]]
    chosen = doubted[np.argsort(-second, kind="stable")][:most]
    if not len(chosen):
        return None
    shown: list[tuple[str, np.ndarray, str, str | None]] = [("teacher, T = 1", probabilities, "#009E73", None)]
    if temperature != 1:
        of_run = np.exp(metrics.log_softmax(teacher / temperature))
        shown.append((f"teacher, T = {temperature:g}", of_run, "#9ADBC5", "//"))
    shown.append(("distilled student, T = 1", np.exp(metrics.log_softmax(student)), "#0072B2", None))
    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(_WIDTH, 0.5 + 1.12 * rows), layout="constrained")
    grid = figure.subplots(rows, 4, width_ratios=[1, 1.7, 1, 1.7], squeeze=False).reshape(-1, 2)
    named = drawable(names)
    for (left, axes), index in zip(grid, chosen, strict=False):
        left.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255)
        places = np.arange(ranked.shape[1])
        height = 0.8 / len(shown)
        for number, (label, values, colour, hatch) in enumerate(shown):
            at = places + height * (number - (len(shown) - 1) / 2)
            axes.barh(
                at, values[index, ranked[index]], height, color=colour, hatch=hatch, label=label, edgecolor="white"
            )
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "", "1"], fontsize=7)
        axes.invert_yaxis()
        axes.set_yticks(places, [named[each] for each in ranked[index]], fontsize=8, parse_math=False)
        axes.set_title(
            f"true label: {named[labels[index]]}", fontsize=8, fontweight="bold", loc="left", parse_math=False
        )
    for left, axes in grid:
        left.axis("off")
        axes.set_visible(bool(axes.containers))
    figure.legend(
        *grid[0][1].get_legend_handles_labels(), fontsize=7, ncols=3, frameon=False, loc="outside upper center"
    )
    return figure


def _confusions(runs: Sequence[str]) -> np.ndarray:
    found = []
    for run in runs:
        labels, logits = predictions.read(run)
        found.append(by_class.confusion(labels, np.argmax(logits, axis=1), logits.shape[1]))
    return np.sum(found, axis=0) / len(runs)
