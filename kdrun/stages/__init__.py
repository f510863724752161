"""The verbs. A stage is a function (config, run_dir) -> results, registered by name."""

from collections.abc import Mapping
from pathlib import Path

from kdrun.registry import get
from kdrun.runs import record as runs
from kdrun.runtime import signals as stopping


def run(config: Mapping, run_dir: Path) -> dict:
    """Run the configured stage in its run directory. SIGINT and SIGTERM end it between two steps."""
    with stopping.on_signals():
        return get("stage", config["stage"])(runs.seen(config, config["stage"]), run_dir)
