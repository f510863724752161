"""Did distilling help? Runs that are there, compared. Nothing is computed anew."""

from collections.abc import Mapping
from pathlib import Path

from kdrun.recording import recording
from kdrun.registry import register


@register("stage", "compare")
def compare(config: Mapping, run_dir: Path) -> dict:
    """Compare the runs in `runs`; writes comparison.csv, .json, .md, .tex, report.html and figures/."""
    from kdrun.comparison import gathering  # pandas and scipy: a second that other stages need not wait for
    from kdrun.reports import comparison

    with recording(run_dir, config) as record:
        places = [config["runs"]] if isinstance(config["runs"], str) else config["runs"]
        record["results"] = comparison.report(gathering.frame(*places), run_dir)
        return record["results"]
