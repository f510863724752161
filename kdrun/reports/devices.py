"""The table of a comparison's exported files, and their figure: accuracy against size and latency."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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


def pareto(rows: Sequence[Row]) -> Figure:
    """Test accuracy against bytes and milliseconds; a line joins the files that no other one beats in both."""
    timed = [row for row in rows if row.median is not None]
    parts = [("size of the file, kB", rows, [row.bytes / 1e3 for row in rows])]
    parts += [("milliseconds for one image, one thread", timed, [1e3 * (row.median or 0) for row in timed])]
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, (label, some, costs) in zip(figure.subplots(1, 2, sharey=True), parts, strict=True):
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
        axes.margins(x=0.18, y=0.12)
        if max(costs) > 10 * min(costs):
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.3 * max(costs))  # from zero, so that twice as long looks so
            axes.locator_params("x", nbins=5)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %")
    for kind in dict.fromkeys(row.kind for row in rows):
        style = STYLES[kind]
        figure.axes[0].plot(
            [], [], linestyle="none", color=style["color"], marker=style["marker"], label=style["label"]
        )
    figure.axes[0].legend(fontsize=8, frameon=False, loc="best")
    return figure


def _unbeaten(costs: Sequence[float], accuracies: Sequence[float]) -> list[tuple[float, float]]:
    """The points that are more accurate than all that cost as much or less, from the cheapest on."""
    found: list[tuple[float, float]] = []
    for cost, accuracy in sorted(zip(costs, accuracies, strict=True), key=lambda point: (point[0], -point[1])):
        if accuracy > max((each for _, each in found), default=-np.inf):
            found.append((cost, accuracy))
    return found
