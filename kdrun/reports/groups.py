"""The table of a comparison's groups, for the terminal, Markdown and HTML."""

import io

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from kdrun import texts
from kdrun.reports.tables import NAMES


def table(groups: pd.DataFrame, best: str | None) -> pd.DataFrame:
    """Groups as people read them: a row each, texts; teachers first, then students alone, controls, the distilled."""
    order = {kind: number for number, kind in enumerate(("teacher", "student", "control", "distill"))}
    versions = groups["made_by"].nunique() if "made_by" in groups else 0
    several = groups.loc[groups["kind"] == "distill", "objective"].nunique() > 1
    rows = []
    for name, group in sorted(groups.iterrows(), key=lambda item: order[item[1]["kind"]]):
        get = group.get
        rows.append(
            {
                "": f"{group['control'] or NAMES[group['stage']]}{' (best)' if name == best else ''}"
                + (f" (teacher saw {get('overlap'):,} validation images)" if get("overlap") else ""),
                "objective": group["objective"] if several else "",
                "T": _number(group["temperature"], "{:g}"),
                "alpha": _number(group["alpha"], "{:g}"),
                "n": f"{group['n']:.0f}",
                "accuracy, %": _number(100 * group["test_accuracy"], "{:.2f}"),
                "± std": _number(100 * group["test_accuracy_std"], "{:.2f}"),
                "95 %": _range(100 * group["test_accuracy_low"], 100 * group["test_accuracy_high"]),
                "gain": _number(100 * get("gain", np.nan), "{:+.2f}"),
                "p": _number(get("p", np.nan), "{:.3f}"),
                "p Wilcoxon": _number(get("p_wilcoxon", np.nan), "{:.3f}"),
                "p McNemar": _number(get("p_mcnemar", np.nan), "{:.3f}"),
                f"errors of {group['count']:,.0f}": _number(group["errors"], "{:,.1f}"),
                "CE": _number(group["cross_entropy"], "{:.4f}"),
                "Brier": _number(group["brier"], "{:.4f}"),
                "ECE": _number(group["calibration_error"], "{:.4f}"),
                "agreement, %": _number(100 * _float(group["teacher_agreement"]), "{:.2f}"),
                "KL": _number(group["teacher_kl"], "{:.4f}"),
                "parameters": f"{group['parameters']:,.0f}",
                "multiply-adds": _number(group["multiply_adds"], "{:,.0f}"),
                "weights, kB": f"{group['weights_bytes'] / 1e3:,.0f}",
                "latency 1, ms": _latency(group, 1),
                "latency 128, ms": _latency(group, 128),
                "seconds": f"{group['training_seconds']:,.0f}",
                "made by": group["made_by"] if versions > 1 else "",
                "group": name,
            }
        )
    table = pd.DataFrame(rows)
    return table.loc[:, [bool(table[column].any()) or column == "" for column in table.columns]]


def text(shown: pd.DataFrame, most: int = 12) -> str:
    """A table for the terminal: as many columns as people look at first."""
    table = Table()
    for number, column in enumerate(shown.columns[:most]):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row in shown.itertuples(index=False):
        table.add_row(*row[:most])
    said = io.StringIO()
    Console(file=said, width=160, color_system=None, markup=False, emoji=False).print(table)
    return said.getvalue().rstrip()


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


def html(shown: pd.DataFrame) -> str:
    """A table in HTML, its texts escaped."""
    return shown.to_html(index=False, border=0, na_rep="", justify="unset")


def _float(value) -> float:
    return np.nan if value is None else float(value)


def _number(value, form: str) -> str:
    return form.format(float(value)) if np.isfinite(_float(value)) else ""


def _range(low: float, high: float) -> str:
    return f"{low:.2f}–{high:.2f}" if np.isfinite(low) else ""


def _latency(group: pd.Series, batch_size: int) -> str:
    median, p95 = (_float(group.get(f"latency_batch_{batch_size}_{name}", np.nan)) for name in ("median", "p95"))
    return f"{1e3 * median:,.2f} (p95 {1e3 * p95:,.2f})" if np.isfinite(median) else ""
