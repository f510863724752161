"""Tables that a run of several stages ends with."""

import logging
from collections.abc import Mapping, Sequence

from rich.table import Table

from kdrun.comparison.kinds import TEACHER
from kdrun.reports import fitted

log = logging.getLogger(__name__)

_WHICH = "Test set: weights best by validation (where not trained on)"
NAMES = {"teacher": "teacher", "student": "student alone", "distill": "distilled student"}


def comparison(rows: Sequence[Mapping]) -> None:
    """Log the table that a pipeline ends with; best by validation first, the last epoch's accuracy beside it."""
    count = rows[0]["test"]["count"]
    table = Table(
        title=f"{_WHICH}; last: after the last epoch; agreement with the teacher",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in (
        "parameters",
        "accuracy",
        f"errors of {count:,}",
        "cross-entropy",
        "agreement",
        "last",
        "steps",
        "seconds",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            NAMES[row["stage"]],
            f"{row['parameters']:,}",
            f"{row['test']['accuracy']:.2%}",
            f"{row['test']['errors']:,}",
            f"{row['test']['cross_entropy']:.4f}",
            "" if row["stage"] == TEACHER else f"{row['teacher_agreement']:.2%}",
            f"{row['test_last']['accuracy']:.2%}",
            f"{row['steps']:,}",
            f"{row['training_seconds']:,.0f}",
        )
    log.info("\n%s", fitted.text(table))
    for row in rows:
        log.info("%s: %s", NAMES[row["stage"]], row["run"])


def exports(exported: Sequence[Mapping]) -> None:
    """Log what an export's files are worth: size, accuracy beside the run's, latency of one image, memory."""
    count = exported[0]["parity"]["count"]
    count = exported[0]["parity"]["count"]
    columns: dict[str, list[str]] = {}
    for each in exported:
        parity, change = each["parity"], each["parity"]["change"]
        latency = [f"{1e3 * each['latency'][threads]['median']:.3g}" for threads in ("one_thread", "all_threads")]
        cells = {
            "": each["file"],
            "kB": f"{each['bytes'] / 1e3:,.0f}",
            "accuracy": f"{parity['accuracy']:.2%}",
            "change, points (95 %)": (
                f"{100 * change['gain']:+.2f} ({100 * change['low']:+.2f} to {100 * change['high']:+.2f})"
            ),
            "lost": f"{parity['lost']:,}",
            "agreement": f"{parity['agreement']:.2%}",
            "1 thread, ms": latency[0],
            "all, ms": latency[1],
            "MB of memory": f"{each['peak_memory'] / 1e6:,.0f}" if each["peak_memory"] else "",
        }
        for heading, cell in cells.items():
            columns.setdefault(heading, []).append(cell)

    def table(kept: Sequence[str]) -> Table:
        found = Table(title=f"Exported, each asked for {count:,} test images in its own runtime", title_justify="left")
        for heading in kept:
            fitted.add_column(found, heading, columns[heading])
        for row in zip(*(columns[heading] for heading in kept), strict=True):
            found.add_row(*row)
        return found

    log.info("\n%s", fitted.widest(table, list(columns), ["all, ms", "MB of memory"]))


def classes(names: Sequence[str], counts: Mapping[str, Sequence[int]], most: int = 40) -> None:
    """Log how many images of each class each split has; of more than `most` classes, the first and the last ones."""
    table = Table(title="Images of each class", title_justify="left")
    for number, heading in enumerate(("", *counts)):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for place, name in enumerate(names):
        if len(names) <= most or not most // 2 <= place < len(names) - most // 2:
            table.add_row(name, *(f"{of_split[place]:,}" for of_split in counts.values()))
        elif place == most // 2:
            table.add_row("...")
    table.add_row("all", *(f"{sum(of_split):,}" for of_split in counts.values()))
    log.info("\n%s", fitted.text(table))


def networks(rows: Sequence[Mapping]) -> None:
    """Log networks' test metrics, and those of several together, whose `run` is empty."""
    table = Table(title=_WHICH, title_justify="left")
    unbalanced = any(_balanced(row["test"]) not in ("", f"{row['test']['accuracy']:.2%}") for row in rows)
    headings = ["", "accuracy", *["balanced"] * unbalanced, f"errors of {rows[0]['test']['count']:,}", "cross-entropy"]
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        test = row["test"]
        accuracies = [f"{test['accuracy']:.2%}", *[_balanced(test)] * unbalanced]
        table.add_row(row["name"], *accuracies, f"{test['errors']:,}", f"{test['cross_entropy']:.4f}")
    log.info("\n%s", fitted.text(table))
    for row in rows:
        if row["run"]:
            log.info("%s: %s", row["name"], row["run"])


def _balanced(test: Mapping) -> str:
    """Balanced accuracy of a split's metrics; empty for a run of before it was measured."""
    return f"{test['balanced_accuracy']:.2%}" if "balanced_accuracy" in test else ""
