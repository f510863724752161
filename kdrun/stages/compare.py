"""Comparison of runs that are there: did distilling help? Nothing is computed anew."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from kdrun import stages
from kdrun.config import rules
from kdrun.config.schema import ONE_JOB, shared
from kdrun.registry import register
from kdrun.runs import directory
from kdrun.runs import record as records
from kdrun.runs.recording import recording
from kdrun.tracking import links
from kdrun.tracking import tracker as tracking


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where there are no runs."""
    directory.found(config["runs"])


@register("stage", "compare", check=check, needs_tensorflow=False)
def compare(config: Mapping, run_dir: Path, *, runs: rules.Paths) -> dict:
    """Compare the runs in `runs`; writes comparison.csv, .json, .md, .tex, report.html and figures/."""
    with recording(run_dir, config) as record:
        places = [runs] if isinstance(runs, str) else runs
        record["results"] = compared(config, places, run_dir)
        return record["results"]


def sweep(config: Mapping, folder: str, run_dir: Path) -> None:
    """Compare the runs of a sweep of a stage that compares its own, over all its jobs, as a run in its directory."""
    of_all = {**shared(config), **ONE_JOB, "stage": "compare", "runs": folder}
    stages.run(of_all, run_dir)


def compared(config: Mapping, places, run_dir: Path, table: bool = True) -> dict:
    """What the runs in `places` say, written below `run_dir`; its `table` is shown, too."""
    from kdrun.comparison import gathering, looks  # pandas and scipy: a second that other stages need not wait for
    from kdrun.reports import comparison

    margin = config["compare"]["margin"] / 100
    earlier = looks.earlier(config["outputs"], run_dir)
    results = comparison.report(gathering.frame(*places), run_dir, margin, earlier, table, config["data"])
    if (run_dir / links.EVENTS).exists():  # which there are not where nothing can be used
        links.add(config["outputs"], run_dir, f"{config['stage']} {run_dir.name}")
    _tell_trackers(config, run_dir)
    return results


def _tell_trackers(config: Mapping, run_dir: Path) -> None:
    started = datetime.fromisoformat(records.read(run_dir)["started"])
    run = tracking.Run(run_dir, config["stage"], started, 0, 0, 0, config, {})
    names = ("report.html", "comparison.csv", "comparison.json")  # which there are not where nothing can be used
    written = {name: run_dir / name for name in names if (run_dir / name).exists()}
    for tracker in tracking.chosen(config["tracker"]).values():
        tracker.report(run, written)
