"""Figures of a comparison: readable in grey and for the colour-blind (Okabe and Ito's colours)."""

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
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(some)), layout="constrained")
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
    names = [
        f"{row['control'] or row['objective']}, T = {row['temperature']:g}, α = {row['alpha']:g}"
        + "".join(f", {key} = {value}" for key, value in differing.get(name, {}).items())
        + " (chosen)" * bool(row["chosen"])
        for name, row in some.iterrows()
    ]
    axes.set_yticks(range(len(some)), names, fontsize=8, parse_math=False)  # somebody else's words
    axes.set_xlabel("gain over the student alone, points of test accuracy")
    _show_most(axes, some)
    axes.grid(axis="x", alpha=0.3)
    return figure


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
    """Mean accuracy by temperature and alpha, on validation and test, n in each cell; None for fewer than two cells.

    Of the objective with the most of them, controls left out.
    """
    distilled = groups[groups["kind"] == DISTILLED]
    distilled = distilled[distilled["objective"].isin(distilled["objective"].mode()[:1])]
    if distilled[["temperature", "alpha"]].drop_duplicates().shape[0] < 2:
        return None
    temperatures, alphas = (sorted(distilled[key].unique()) for key in ("temperature", "alpha"))
    figure = Figure(figsize=(2.6 + 1.5 * len(temperatures), 1.4 + 0.62 * len(alphas)), layout="constrained")
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
        for row, column in np.ndindex(values.shape):
            if np.isfinite(value := values.iloc[row, column]):
                text = f"{value:.2f}\nn = {counts.iloc[row, column]:.0f}"
                colour = "black" if value > middle else "white"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
        axes.set_yticks(range(len(alphas)), [f"{a:g}" for a in alphas])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("temperature")
        figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.axes[0].set_ylabel("alpha")
    return figure


def learning_curves(runs: Mapping[str, Sequence[str]]) -> Figure | None:
    """Validation accuracy by epoch: the mean over seeds and, as a band, from the lowest to the highest.

    `runs` gives run directories by stage; those without metrics.jsonl are left out.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    lowest = []
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
        lowest.append(by_epoch["mean"].median())
    if not lowest:
        return None
    top = axes.get_ylim()[1]
    axes.set_ylim(bottom=max(axes.get_ylim()[0], min(lowest) - 3 * max(0.5, top - min(lowest))))
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy, %")
    axes.locator_params("x", integer=True)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def accuracy_against(groups: pd.DataFrame) -> Figure | None:
    """Test accuracy with its interval against parameters and, where it was measured, latency at batch 1."""
    kinds = [("parameters", "parameters")]
    if "latency_batch_1_median" in groups and groups["latency_batch_1_median"].notna().any():
        groups = groups.assign(milliseconds=1e3 * groups["latency_batch_1_median"].astype(float))
        kinds.append(("milliseconds", "milliseconds for one image (median)"))
    figure = Figure(figsize=(4.2 * len(kinds), 3.6), layout="constrained")
    for axes, (key, label) in zip(np.atleast_1d(figure.subplots(1, len(kinds), sharey=True)), kinds, strict=True):
        for stage, style in STYLES.items():
            some = groups[groups["kind"] == stage]
            if some.empty:
                continue
            accuracy = 100 * some["test_accuracy"]
            errors = np.nan_to_num(
                100 * np.abs([some["test_accuracy_low"], some["test_accuracy_high"]] - some["test_accuracy"].to_numpy())
            )
            axes.errorbar(some[key], accuracy, yerr=errors, capsize=2, alpha=0.8, **{**style, "linestyle": "none"})
        if groups[key].max() > 10 * groups[key].min():
            axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def reliability(runs: Mapping[str, Sequence[str]]) -> Figure:
    """Accuracy against confidence on the test set, in bins, over all seeds of a stage's runs."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="perfectly calibrated")
    for stage, style in STYLES.items():
        if not runs.get(stage):
            continue
        parts = []
        for run in runs[stage]:
            labels, logits = predictions.read(run)
            parts.append(metrics.confidences(logits, labels, _BINS))
        confidence, right, which = (np.concatenate(part) for part in zip(*parts, strict=True))
        counts = np.bincount(which, minlength=_BINS)
        filled = counts > 0
        means = [np.bincount(which, values, _BINS)[filled] / counts[filled] for values in (confidence, right)]
        axes.plot(*means, markersize=4, **style)
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
    figure = Figure(figsize=(5, 4.4), layout="constrained")
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
    """Test images that the teacher is least sure of and yet gets right, with its probabilities at T = 1 and at the
    run's T beside the student's; None where it gets none right.

    Images uint8 [n, height, width, channels], logits [n, classes]; classes have `names`.
    """
    probabilities = np.exp(metrics.log_softmax(teacher))
    right = np.flatnonzero(np.argmax(teacher, axis=1) == labels)
    order = right[np.argsort(probabilities[right].max(axis=1), kind="stable")][:most]
    if not len(order):
        return None
    classes = teacher.shape[1]
    figure = Figure(figsize=(7, 0.5 + 0.95 * len(order)), layout="constrained")
    grid = figure.subplots(len(order), 2, width_ratios=[1, 7], squeeze=False)
    for (left, axes), index in zip(grid, order, strict=True):
        left.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255)
        left.axis("off")
        places = np.arange(classes)
        shown = (
            ("teacher, T = 1", probabilities[index], "#009E73", None),
            (
                f"teacher, T = {temperature:g}",
                np.exp(metrics.log_softmax(teacher / temperature))[index],
                "#9ADBC5",
                "//",
            ),
            ("distilled student, T = 1", np.exp(metrics.log_softmax(student))[index], "#0072B2", None),
        )
        for number, (label, values, colour, hatch) in enumerate(shown):
            axes.bar(
                places + 0.27 * (number - 1), values, 0.27, color=colour, hatch=hatch, label=label, edgecolor="white"
            )
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 1])
        if classes <= 20:
            axes.set_xticks(places, [""] * classes)
    if classes <= 20:
        named = drawable(names)
        axes.set_xticks(places, named, rotation=upright(named), parse_math=False)
    grid[0][1].legend(fontsize=7, ncols=3, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _confusions(runs: Sequence[str]) -> np.ndarray:
    found = []
    for run in runs:
        labels, logits = predictions.read(run)
        found.append(by_class.confusion(labels, np.argmax(logits, axis=1), logits.shape[1]))
    return np.sum(found, axis=0) / len(runs)
