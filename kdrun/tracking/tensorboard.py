"""A training run's TensorBoard: curves, weight histograms, config, pictures, HParams.

How an event is built is in events.py and summaries.py. They are imported when a run begins, and not where only a
tracker's keys are asked for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from kdrun.registry import register
from kdrun.tracking.tracker import End, Epoch, Run, Tracker

if TYPE_CHECKING:
    from kdrun.tracking.events import Events


@register("tracker", "tensorboard")
class TensorBoard(Tracker):
    """Event files below the run's tensorboard/, one folder a split: train, validation, test; links.py names them."""

    def __init__(self, *, histograms: bool):
        self._histograms = histograms
        self._writers: dict[str, Events] = {}

    def start(self, run: Run) -> None:
        """Open the event files: a run's own from the first step on, or cut after the last epoch that is done.

        Config and hyperparameters are shown as text and in the HParams tab.
        """
        from kdrun.tracking import events, links, summaries

        self._devices = run.devices
        # what came after the last epoch comes again; the test set's come at the very end, all at once
        epoch = run.epoch * run.steps_per_epoch
        kept = {"train": epoch, "validation": epoch, "test": 0} if run.step else {}
        for split in ("train", "validation", "test"):
            folder = run.run_dir / links.EVENTS / split
            summaries.cut(folder, kept.get(split, -1))
            self._writers[split] = events.Events(folder)
        if "outputs" in run.config:
            links.add(run.config["outputs"], run.run_dir, links.name(run))
        if not run.step:
            self._writers["train"].add(0, summaries.config(run.config))
            self._writers["test"].add(0, summaries.hyperparameters(run.hyperparameters, run.run_dir.name))
            for writer in self._writers.values():
                writer.flush()

    def epoch(self, epoch: Epoch) -> None:
        """Show the epoch's numbers, and the weights as histograms."""
        from kdrun.tracking import events, summaries

        speed = {"of_all": epoch.images_per_second, "of_each": epoch.images_per_second / self._devices}
        if self._devices > 1:
            of_each = {f"images_per_second/{of}": value for of, value in speed.items()}
            self._writers["train"].add(epoch.step, events.scalars(of_each))
        for split, values in (("train", epoch.train), ("validation", epoch.validation)):
            curves = {name: value for name, value in values.items() if name not in ("count", "errors")}
            self._writers[split].add(epoch.step, events.scalars(curves))
            if split == "train" and self._histograms:
                self._writers[split].add(epoch.step, summaries.histograms(epoch.model.trainable_variables))
            self._writers[split].flush()

    def end(self, end: End) -> None:
        """Show the best weights' test metrics, which go to the HParams tab, and the pictures."""
        from kdrun.tracking import events, summaries

        writer = self._writers["test"]
        writer.add(end.step, events.scalars({f"test/{name}": value for name, value in end.test["best"].items()}))
        writer.add(end.step, events.pictures(summaries.encoded(end.pictures)))
        writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            with suppress(OSError):  # what matters was flushed
                writer.close()
