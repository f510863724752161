"""Did distilling help? Runs that are there, compared. Nothing is computed anew."""

from collections.abc import Mapping
from pathlib import Path

from kdrun.registry import register
from kdrun.runs.recording import recording


@register("stage", "compare")
def compare(config: Mapping, run_dir: Path) -> dict:
    """Compare the runs in `runs`; writes comparison.csv, .json, .md, .tex, report.html and figures/."""
    with recording(run_dir, config) as record:
        places = [config["runs"]] if isinstance(config["runs"], str) else config["runs"]
        record["results"] = compared(config, places, run_dir)
        return record["results"]


def compared(config: Mapping, places, run_dir: Path, table: bool = True) -> dict:
    """What the runs in `places` say, written below `run_dir`; its `table` is shown, too."""
    from kdrun.comparison import gathering, looks  # pandas and scipy: a second that other stages need not wait for
    from kdrun.reports import comparison

    margin = config["compare"]["margin"] / 100
    earlier = looks.earlier(config["outputs"], run_dir)
    return comparison.report(gathering.frame(*places), run_dir, margin, earlier, table)
