"""The verbs. A stage is a function (config, run_dir) -> results, registered by name."""

from collections.abc import Mapping
from pathlib import Path

from kdrun.registry import get


def run(config: Mapping, run_dir: Path) -> dict:
    """Run the configured stage in its run directory."""
    return get("stage", config["stage"])(config, run_dir)
