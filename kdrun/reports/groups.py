"""The table of a comparison's groups, for the page, the terminal, Markdown and LaTeX."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from rich.table import Table

from kdrun.comparison import sentences, texts
from kdrun.comparison.kinds import DISTILLED
from kdrun.reports import fitted
from kdrun.reports.tables import NAMES

_LAST_AT_FIRST = ("accuracy, %", "± std", "95 % (t)")  # columns; what is right of them is for the second look
_DIFFERS = 0.5  # points that make balanced accuracy worth a column; the table by class has it in any case


# left out first where a terminal has no room for all columns: those that others say almost as well, the page has them
_SPARE = ("95 % (t)", "p95, ms", "± std of ECE", "ECE, 15 bins", "Brier", "± std")


def table(groups: pd.DataFrame, chosen: Collection[str], names: Mapping[str, str]) -> pd.DataFrame:
    """Groups as people read them: a row each, texts; teachers first, then students alone, controls, the distilled.

    `chosen` are the settings that the sentences speak of, `names` what the studies are called.
    """
    all_groups = list(groups.iterrows())
    order = {kind: number for number, kind in enumerate(("teacher", "student", "control", "distill"))}
    versions = groups["made_by"].nunique()
    several = groups.loc[groups["kind"] == DISTILLED, "objective"].nunique() > 1
    teachers = groups["teachers"].max() > 1
    balanced = {name: _number(100 * _float(group.get("balanced_accuracy")), "{:.2f}") for name, group in all_groups}
    unbalanced = any(
        balanced[name] and abs(float(balanced[name]) - 100 * group["test_accuracy"]) >= _DIFFERS
        for name, group in all_groups
    )
    rows = []
    for name, group in sorted(all_groups, key=lambda item: (names.get(item[1]["study"], ""), order[item[1]["kind"]])):
        rows.append(
            {
                "": (group["control"] or NAMES[group["stage"]])
                + (f", for {group['quantize']}" if group["quantize"] else "")
                + (" (chosen)" if name in chosen else "")
                + (f" (teacher saw {group['overlap']:,} validation images)" if group["overlap"] else ""),
                "study": names.get(group["study"], "") if len(names) > 1 else "",
                "objective": group["objective"] if several else "",
                "T": _number(group["temperature"], "{:g}"),
                "alpha": _number(group["alpha"], "{:g}"),
                "seeds": f"{group['seeds']:.0f}",
                "teachers": f"{group['teachers']:.0f}" if teachers and group["teachers"] else "",
                "gain": _number(100 * group["gain"], "{:+.2f}"),
                "95 % of gain": _range(100 * group["gain_low"], 100 * group["gain_high"], "{:+.2f}"),
                "adjusted p": sentences.p_value(group["p_adjusted"])
                if np.isfinite(_float(group["p_adjusted"]))
                else "",
                "accuracy, %": _number(100 * group["test_accuracy"], "{:.2f}"),
                "± std": _number(100 * group["test_accuracy_std"], "{:.2f}"),
                "95 % (t)": _range(100 * group["test_accuracy_low"], 100 * group["test_accuracy_high"], "{:.2f}"),
                "balanced, %": balanced[name] if unbalanced else "",
                f"errors of {group['count']:,.0f}": _number(group["errors"], "{:,.1f}"),
                "CE": _number(group["cross_entropy"], "{:.4f}"),
                "Brier": _number(group["brier"], "{:.4f}"),
                "ECE, 15 bins": _number(group["calibration_error"], "{:.4f}"),
                "± std of ECE": _number(group["calibration_error_std"], "{:.4f}"),
                "agreement, %": _number(100 * _float(group["teacher_agreement"]), "{:.2f}"),
                "KL": _number(group["teacher_kl"], "{:.4f}"),
                "parameters": f"{group['parameters']:,.0f}",
                "multiply-adds": _number(group["multiply_adds"], "{:,.0f}"),
                "weights, kB": f"{group['weights_bytes'] / 1e3:,.0f}",
                "latency 1, ms": _latency(group, 1),
                "latency 128, ms": _latency(group, 128),
                "seconds": f"{group['training_seconds']:,.0f}",
                "single gains": _singles(group["gains"]),
                "made by": group["made_by"] if versions > 1 else "",
                "group": name,
            }
        )
    table = pd.DataFrame(rows).fillna("")  # of groups with test splits of other sizes, each has a column of errors
    return table.loc[:, [bool(table[column].any()) or column == "" for column in table.columns]]


def text(shown: pd.DataFrame, most: int = 12) -> str:
    """A table for the terminal: as many columns as people look at first, and fit."""

    def table(columns: Sequence[str]) -> Table:
        found = Table()
        for column in columns:
            fitted.add_column(found, column, list(shown[column]), column in ("", "study", "objective"))
        for row in shown.loc[:, list(columns)].itertuples(index=False):
            found.add_row(*row)
        return found

    return fitted.widest(table, list(shown.columns[:most]), _SPARE)


def markdown(shown: pd.DataFrame) -> str:
    """A table in Markdown, its texts escaped."""
    rows = [map(texts.markdown, row) for row in (shown.columns, *shown.itertuples(index=False))]
    lines = [rows[0], ["---", *["---:"] * (shown.shape[1] - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(shown: pd.DataFrame) -> str:
    """A table in LaTeX, its texts escaped; it needs the package booktabs."""
    rows = [map(texts.latex, row) for row in (shown.columns, *shown.itertuples(index=False))]
    heading, *body = (" & ".join(row) + r" \\" for row in rows)
    columns = "l" + "r" * (shown.shape[1] - 1)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", heading, r"\midrule", *body, r"\bottomrule", end])


def looked_at_first(shown: pd.DataFrame) -> int:
    """How many of the columns, from the left, the page shows before it is asked for all; 0 where that is all."""
    first = 1 + max(list(shown.columns).index(name) for name in _LAST_AT_FIRST if name in shown)
    return first if first < len(shown.columns) else 0


def _float(value) -> float:
    return np.nan if value is None else float(value)


def _number(value, form: str) -> str:
    return form.format(float(value)) if np.isfinite(_float(value)) else ""


def _range(low: float, high: float, form: str) -> str:
    return f"{form.format(low)} to {form.format(high)}" if np.isfinite(_float(low)) else ""


def _singles(gains, most: int = 5) -> str:
    """Each seed's gain in points, up to so many."""
    if not isinstance(gains, Mapping):
        return ""
    shown = " ".join(f"{100 * gain:+.2f}" for gain in list(gains.values())[:most])
    return shown + " …" * (len(gains) > most)


def _latency(group: pd.Series, batch_size: int) -> str:
    median, p95 = (_float(group.get(f"latency_batch_{batch_size}_{name}", np.nan)) for name in ("median", "p95"))
    return f"{1e3 * median:,.2f} (p95 {1e3 * p95:,.2f})" if np.isfinite(median) else ""
