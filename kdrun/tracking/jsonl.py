"""A training run's numbers in metrics.jsonl: a line for each epoch and split."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from kdrun.registry import register
from kdrun.storage import files
from kdrun.storage.forms import count, fraction, number, problem, word
from kdrun.tracking.tracker import Epoch, Run, Tracker


@register("tracker", "jsonl")
class Jsonl(Tracker):
    """All lines so far, written anew at each epoch: the file is whole at any instant."""

    STATE: ClassVar = {
        "since": count,
        "lines": [{"epoch": count, "step": count, "split": word, "accuracy": fraction, str: number}],
    }
    files = ("metrics.jsonl",)

    def __init__(self) -> None:
        self._lines: list[dict] = []
        self._since: int | None = None  # how many epochs were done before the first of the lines

    def restore(self, values: Mapping) -> None:
        """Take the lines as they were."""
        self._lines, self._since = values["lines"], values["since"]

    def start(self, run: Run) -> None:
        """In a run that goes on, cut what was written after the state that it goes on from."""
        self._path = run.run_dir / self.files[0]
        if self._since is None:
            self._since = run.epoch
        if run.step:
            self._write()

    def epoch(self, epoch: Epoch) -> None:
        """Write two more lines."""
        for split, values in (("train", epoch.train), ("validation", epoch.validation)):
            self._lines.append({"epoch": epoch.number, "step": epoch.step, "split": split, **values})
        self._write()

    def state(self) -> dict:
        """All lines."""
        return {"since": self._since, "lines": self._lines}

    def wrong(self, values: Mapping, step: int, epochs: int) -> str | None:
        """Say what of a saved state cannot be: its form, or the epochs that its lines are of."""
        if found := problem(values, self.STATE):
            return found
        told = sorted({line["epoch"] for line in values["lines"]})
        if told != list(range(values["since"] + 1, epochs + 1)):
            return f"the lines are of other epochs than the {epochs} that are done"
        return None

    def _write(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        files.write_with(self._path, lambda name: Path(name).write_text(text))
