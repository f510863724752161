"""What networks cost: accuracy against size and latency, of networks as they were trained and of their exported files;
and the table of these."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdrun.comparison.exports import Row
from kdrun.reports.plots import STYLES
from kdrun.reports.tables import NAMES

_FILLED = {"none": "full", "float16": "left", "dynamic": "bottom", "int8": "none"}  # markers, for grey


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """The files as people read them: a row each, texts."""
    return pd.DataFrame(
        [
            {
                "": NAMES.get(row.kind, row.kind),
                "seed": str(row.seed),
                "file": row.file,
                "quantised": "" if row.quantize == "none" else row.quantize,
                "kB": f"{row.bytes / 1e3:,.0f}",
                "accuracy, %": f"{100 * row.accuracy:.2f}",
                "change, points": f"{100 * row.change[0]:+.2f}" if row.format else "",
                "95 % of change": f"{100 * row.change[1]:+.2f} to {100 * row.change[2]:+.2f}" if row.format else "",
                "one image, ms": "" if row.median is None else f"{1e3 * row.median:.3g}",
                "p95, ms": "" if row.p95 is None else f"{1e3 * row.p95:.3g}",
            }
            for row in rows
        ]
    )


def accuracy_against(groups: pd.DataFrame, spoken_of: Collection[str]) -> Figure:
    """Test accuracy with its interval against parameters and, where it was measured, latency of one image.

    Settings that are not `spoken_of` are small and pale.
    """
    costs = {"parameters": groups["parameters"].astype(float)}
    if "latency_batch_1_median" in groups and groups["latency_batch_1_median"].notna().any():
        costs["milliseconds for one image (median)"] = 1e3 * groups["latency_batch_1_median"].astype(float)
    figure = Figure(figsize=(5.9, 3.9), layout="constrained")
    for axes, (label, of_all) in zip(_panels(figure, len(costs)), costs.items(), strict=True):
        for kind, style in STYLES.items():
            some = groups[groups["kind"] == kind]
            is_main = some.index.isin(spoken_of)
            pale, main = some[~is_main], some[is_main]
            marked = {key: style[key] for key in ("color", "marker")} | {"linestyle": "none"}
            axes.plot(of_all[pale.index], 100 * pale["test_accuracy"], markersize=4, alpha=0.35, **marked)
            if main.empty:
                continue
            ends = [main["test_accuracy_low"], main["test_accuracy_high"]]
            errors = np.nan_to_num(100 * np.abs(ends - main["test_accuracy"].to_numpy()))
            drawn = {**marked, "label": style["label"], "capsize": 2, "alpha": 0.9}
            axes.errorbar(of_all[main.index], 100 * main["test_accuracy"], yerr=errors, **drawn)
        _cost_axis(axes, label, of_all.dropna())
    _legend(figure, [kind for kind in STYLES if (groups["kind"] == kind).any()])
    return figure


def pareto(rows: Sequence[Row]) -> Figure:
    """Test accuracy against bytes and milliseconds; a line joins the files that no other one beats in both."""
    timed = [row for row in rows if row.median is not None]
    parts = [("size of the file, kB", rows, [row.bytes / 1e3 for row in rows])]
    parts += [("milliseconds for one image, one thread", timed, [1e3 * (row.median or 0) for row in timed])]
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, (label, some, costs) in zip(_panels(figure, 2), parts, strict=True):
        accuracies = [100 * row.accuracy for row in some]
        for row, cost, accuracy in zip(some, costs, accuracies, strict=True):
            style = {key: STYLES[row.kind][key] for key in ("color", "marker")}
            filled = _FILLED[row.quantize]
            axes.plot(cost, accuracy, linestyle="none", markersize=8, fillstyle=filled, alpha=0.9, **style)
            text = " ".join(
                filter(None, (row.format.replace("_", " "), "" if row.quantize == "none" else row.quantize))
            )
            axes.annotate(text, (cost, accuracy), xytext=(6, 4), textcoords="offset points", fontsize=7)
        best = _unbeaten(costs, accuracies)
        axes.plot(*zip(*best, strict=True), color="grey", linewidth=0.8, zorder=0, drawstyle="steps-post")
        _cost_axis(axes, label, costs)
    _legend(figure, dict.fromkeys(row.kind for row in rows))
    return figure


def _panels(figure: Figure, count: int) -> np.ndarray:
    """Axes beside each other, of one accuracy."""
    panels = np.atleast_1d(figure.subplots(1, count, sharey=True))
    panels[0].set_ylabel("test accuracy, %")
    return panels


def _cost_axis(axes, label: str, costs: Iterable[float]) -> None:
    """From zero, so that twice as much looks so; by powers of ten where costs are far apart."""
    low, high = min(costs), max(costs)
    axes.margins(x=0.18, y=0.12)
    if high > 10 * low:
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.3 * high)
        axes.locator_params("x", nbins=5)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def _legend(figure: Figure, kinds: Iterable[str]) -> None:
    marks = [
        Line2D([], [], linestyle="none", **{key: STYLES[kind][key] for key in ("color", "marker", "label")})
        for kind in kinds
    ]
    figure.legend(handles=marks, fontsize=8, frameon=False, ncols=4, loc="outside upper center")


def _unbeaten(costs: Sequence[float], accuracies: Sequence[float]) -> list[tuple[float, float]]:
    """The points that are more accurate than all that cost as much or less, from the cheapest on."""
    found: list[tuple[float, float]] = []
    for cost, accuracy in sorted(zip(costs, accuracies, strict=True), key=lambda point: (point[0], -point[1])):
        if accuracy > max((each for _, each in found), default=-np.inf):
            found.append((cost, accuracy))
    return found
