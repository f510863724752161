"""The table of all jobs that a sweep ends with, and the reason of each failure."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from rich.table import Table

from kdrun.comparison import texts
from kdrun.reports import fitted
from kdrun.runs import record as runs

log = logging.getLogger(__name__)


def show(records: Mapping[Path, dict | str], of_command: Collection[str], total: int | None) -> bool:
    """Log a sweep's jobs by run directory: records, or why they cannot be read. Says whether all of the command's are
    completed; others that its folder holds are listed apart."""
    ours = {run_dir: record for run_dir, record in records.items() if run_dir.name in of_command}
    others = {run_dir: record for run_dir, record in records.items() if run_dir.name not in of_command}
    if others:
        _show("Jobs of other commands in this folder", others)
    failures = _show("Jobs", ours)
    missing = 0 if total is None else max(0, total - len(ours))
    if missing:
        log.info("%d jobs were not begun. The same command again goes on with what is left", missing)
    return not failures and not missing


def _show(title: str, records: Mapping[Path, dict | str]) -> list[tuple[Path, str]]:
    """Log a table of jobs, and why each failed that did; returns those."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(("job", "status", "validation", "test", "seconds")):
        justify: Literal["right", "left"] = "right" if number > 1 else "left"
        table.add_column(heading, justify=justify, no_wrap=number > 0, overflow="fold")  # a sweep's names may be long
    failures = []
    for run_dir, record in records.items():
        if isinstance(record, str):
            table.add_row(texts.one_line(run_dir.name), "damaged", "", "", "")
            failures.append((run_dir, record))
            continue
        trained = record["status"] == "completed" and runs.has_network(record)
        results = record.get("results", {}) if trained else {}
        best = [
            f"{results[split]['best']['accuracy']:.2%}" if split in results else "" for split in ("validation", "test")
        ]
        seconds = f"{results['training_seconds']:,.0f}" if "training_seconds" in results else ""
        table.add_row(texts.one_line(run_dir.name), record["status"], *best, seconds)
        if record["status"] != "completed":
            failures.append((run_dir, record.get("error") or record["status"]))
    log.info("\n%s", fitted.text(table))
    for run_dir, reason in failures:
        log.info("%s: %s (%s)", run_dir.name, texts.one_line(reason), run_dir / "kdrun.log")
    return failures
