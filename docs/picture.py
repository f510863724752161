"""Draw the README's picture from a finished comparison: python docs/picture.py outputs/pipeline/RUN [FILE].

Test accuracy against size: the teacher, the student alone, the distilled student, and what distilling brought.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from kdrun.reports.plots import STYLES


def draw(comparison: Path) -> Figure:
    """The teacher, the student alone and the distilled student of the first verdict of a comparison's folder."""
    verdict = json.loads((comparison / "comparison.json").read_text(encoding="utf-8"))["studies"][0]
    groups = pd.read_csv(comparison / "comparison.csv").set_index("group")
    shown = {
        "teacher": groups[groups["kind"] == "teacher"].iloc[0],
        "student": groups.loc[verdict["baseline"]],
        "distill": groups.loc[verdict["chosen"]],
    }
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for kind, row in shown.items():
        style = {key: STYLES[kind][key] for key in ("color", "marker")}
        axes.plot(row["parameters"], 100 * row["test_accuracy"], linestyle="none", markersize=14, **style)
    _label(axes, shown["teacher"], "teacher", "teacher", (0, -34))
    _label(axes, shown["student"], "student", "student alone", (16, -6))
    _label(axes, shown["distill"], "distill", "distilled student", (16, -6))
    x = shown["student"]["parameters"]
    low, high, top = (100 * shown[kind]["test_accuracy"] for kind in ("student", "distill", "teacher"))
    _arrow(axes, (x, low), (x, high), "#0072B2", 9, lw=2)
    axes.annotate(f"{high - low:+.2f} points", (x, (low + high) / 2), (-10, 0), **_TEXT, ha="right", weight="bold")
    _arrow(
        axes,
        (shown["teacher"]["parameters"], top),
        (x, high),
        "#009E73",
        13,
        linestyle="--",
        connectionstyle="arc3,rad=0.15",
    )
    middle = ((x * shown["teacher"]["parameters"]) ** 0.5, (high + top) / 2)
    axes.annotate("its softened outputs teach", middle, (20, -4), **_TEXT, ha="left", color="#00704F")
    axes.set_xscale("log")
    axes.set_xlim(x / 2.2, 2 * shown["teacher"]["parameters"])
    sizes = [row["parameters"] for row in (shown["student"], shown["teacher"])]
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_ylim(low - 1.5, top + 1.5)
    axes.set_xlabel("parameters")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    return figure


_TEXT = {"textcoords": "offset points", "fontsize": 11, "va": "center"}


def _arrow(axes, start: tuple[float, float], end: tuple[float, float], color: str, gap: float, **looks) -> None:
    looks = {"arrowstyle": "->", "color": color, "shrinkA": gap, "shrinkB": gap, "lw": 1.5} | looks
    axes.annotate("", end, start, arrowprops=looks)


def _label(axes, row: Mapping, kind: str, name: str, offset: tuple[int, int]) -> None:
    place = (row["parameters"], 100 * row["test_accuracy"])
    text = f"{name}\n{100 * row['test_accuracy']:.2f} %"
    axes.annotate(text, place, offset, **_TEXT, ha="left" if offset[0] else "center", color=STYLES[kind]["color"])


if __name__ == "__main__":
    folder, *file = sys.argv[1:]
    draw(Path(folder)).savefig(file[0] if file else Path(__file__).parent / "figures/teacher_student.png", dpi=120)
