"""What a command has made: its run's directory, and the metrics in it."""

import json
from pathlib import Path

from kdrun.cli.main import main


def done(outputs: Path, *arguments: str) -> Path:
    """The run directory of a command, the only one that it makes below `outputs`."""
    before = set(outputs.glob("*/*/run.json"))
    assert main([*arguments, f"outputs={outputs}"]) == 0
    (made,) = set(outputs.glob("*/*/run.json")) - before
    return made.parent


def lines(run_dir: Path, split: str = "train") -> list[dict]:
    """A split's lines in metrics.jsonl, one an epoch."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]
