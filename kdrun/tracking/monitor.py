"""What a user sees of a training run: the progress bar, a line an epoch, metrics.jsonl and TensorBoard."""

import io
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary import histogram_pb
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from kdrun.storage import files
from kdrun.storage.forms import count, fraction, moment, number, word
from kdrun.tracking import events
from kdrun.tracking.events import Events

log = logging.getLogger(__name__)

_READ_AT_ONCE = 1 << 18  # bytes; TensorFlow warns where it is not said
# the form of what `Monitor.progress` gives
PROGRESS = {
    "lines": [{"epoch": count, "step": count, "split": word, "accuracy": fraction, str: number}],
    **dict.fromkeys(("training_seconds", "steady_seconds"), number),
    **dict.fromkeys(("steady_steps", "steps"), count),
    **dict.fromkeys(("first_step", "last_step"), (None, moment)),
}


class Monitor:
    """Follows one training run. Use as a context manager: leaving it closes the bar and the event files."""

    def __init__(
        self,
        run_dir: Path,
        title: str,
        started: datetime,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        histograms: bool,
        config_text: str,
        hyperparameters: Mapping,
    ):
        self._started = started
        self._run_dir, self._title, self._epochs, self._batch_size = run_dir, title, epochs, batch_size
        self._steps_per_epoch, self._histograms = steps_per_epoch, histograms
        self._config_text, self._hyperparameters = config_text, dict(hyperparameters)
        self._lines: list[dict] = []
        self._writers = {}
        self._call_ended = time.perf_counter()
        self._first_step = self._last_step = None
        self._compiled = False  # whether this process has done its first call of the compiled step
        self._training_seconds, self._steady_seconds, self._steady_steps, self._steps = 0.0, 0.0, 0, 0

    def __enter__(self) -> "Monitor":
        console = Console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        total = self._epochs * self._steps_per_epoch
        self._task = self._bar.add_task(self._title, total=total, shown="compiling")
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        with suppress(OSError):  # the terminal is gone
            self._bar.stop()
        for writer in self._writers.values():
            with suppress(OSError):  # what matters was flushed
                writer.close()

    def start(self, before: Mapping | None) -> None:
        """Open the curves: a run's own from the first step on, or as they were when `progress` gave `before`.

        Config and hyperparameters are shown as text and in the HParams tab.
        """
        if before:
            self._lines = before["lines"]
            for name in ("training_seconds", "steady_seconds", "steady_steps", "steps"):
                setattr(self, f"_{name}", before[name])
            for name in ("first_step", "last_step"):
                setattr(self, f"_{name}", before[name] and datetime.fromisoformat(before[name]))
            self._write_lines()
            self._bar.update(self._task, completed=self._steps)
        # what came after the last epoch in there comes again; the test set's come at the very end, all at once
        epoch = self._lines[-1]["step"] if self._lines else 0
        kept = {"train": epoch, "validation": epoch, "test": 0} if before else {}
        for split in ("train", "validation", "test"):
            folder = self._run_dir / "tensorboard" / split
            _cut_events(folder, kept.get(split, -1))
            self._writers[split] = Events(folder)
        if not before:
            self._writers["train"].add(0, text_pb("config", "```yaml\n" + self._config_text + "\n```"))
            self._writers["test"].add(0, hparams.hparams_pb(self._hyperparameters, trial_id=self._run_dir.name))
            for writer in self._writers.values():
                writer.flush()

    def progress(self) -> dict:
        """What `start` needs to go on from here in another process, as plain values."""
        return {
            "lines": self._lines,
            "training_seconds": self._training_seconds,
            "steady_seconds": self._steady_seconds,
            "steady_steps": self._steady_steps,
            "steps": self._steps,
            "first_step": self._first_step and self._first_step.isoformat(),
            "last_step": self._last_step and self._last_step.isoformat(),
        }

    def steps(self, latest, count: int) -> None:
        """`count` steps are done; `latest` holds the last one's metrics (see loop.STEP_METRICS)."""
        now = time.perf_counter()
        seconds, self._call_ended = now - self._call_ended, now
        if self._first_step is None:
            self._first_step = datetime.now(UTC)
        if self._compiled:
            self._steady_seconds += seconds
            self._steady_steps += count
        self._compiled = True
        self._training_seconds += seconds
        self._steps += count
        if self._steps % self._steps_per_epoch == 0:  # any epoch's end may be the run's
            self._last_step = datetime.now(UTC)
        shown = f"loss {latest[0]:.4f}, accuracy {latest[2]:.3f}, {self._rate():,.0f} images/s"
        self._bar.update(self._task, completed=self._steps, shown=shown)

    def pause_ended(self) -> None:
        """What happened since the last step was not training."""
        self._call_ended = time.perf_counter()

    def epoch(self, number: int, train: Mapping, validation: Mapping, best: int, model) -> None:
        """An epoch is validated: log it."""
        step = number * self._steps_per_epoch
        for split, values in (("train", train), ("validation", validation)):
            self._lines.append({"epoch": number, "step": step, "split": split, **values})
            curves = {name: value for name, value in values.items() if name not in ("count", "errors")}
            self._writers[split].add(step, events.scalars(curves))
            if split == "train" and self._histograms:
                pictured = Summary()
                for weight in model.trainable_variables:  # by NumPy: TensorFlow takes seconds for hundreds of them
                    pictured.MergeFrom(histogram_pb(weight.name, weight.numpy()))
                self._writers[split].add(step, pictured)
            self._writers[split].flush()
        self._write_lines()
        log.info(
            "%s epoch %d/%d  loss %.4f  accuracy %.4f  |  validation cross-entropy %.4f  accuracy %.4f%s  |  "
            "%s images/s%s",
            self._title,
            number,
            self._epochs,
            train["loss"],
            train["accuracy"],
            validation["cross_entropy"],
            validation["accuracy"],
            f"  agreement {validation['teacher_agreement']:.4f}" if "teacher_agreement" in validation else "",
            f"{self._rate():,.0f}",
            "  best" if best == number else "",
        )

    def final(self, test: Mapping[str, Mapping], pictures: Mapping) -> None:
        """Show test metrics (the best weights' go to the HParams tab) and pictures uint8 [height, width, 3]."""
        writer = self._writers["test"]
        writer.add(self._steps, events.scalars({f"test/{name}": value for name, value in test["best"].items()}))
        encoded = {name: tf.io.encode_png(picture).numpy() for name, picture in pictures.items()}
        writer.add(self._steps, events.pictures(encoded))
        writer.flush()

    def speed(self) -> dict:
        """Seconds from the run's start to the first finished step, seconds of training, images/s in steady state.

        Steady state leaves the first call out. Also when the first and the last step were done.
        """
        return {
            "seconds_to_first_step": round((self._first_step - self._started).total_seconds(), 3),
            "training_seconds": round(self._training_seconds, 3),
            "images_per_second": round(self._rate(), 1),
            "first_step": self._first_step.isoformat(timespec="microseconds"),
            "last_step": self._last_step.isoformat(timespec="microseconds"),
        }

    def _write_lines(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        files.write_with(self._run_dir / "metrics.jsonl", lambda name: Path(name).write_text(text))

    def _rate(self) -> float:
        seconds, steps = self._steady_seconds, self._steady_steps
        if not steps:
            seconds, steps = self._training_seconds, self._steps
        return steps * self._batch_size / seconds if seconds else 0.0


def _cut_events(folder: Path, step: int) -> None:
    """Take what came after `step` out of a folder's event files; with a negative one they are removed."""
    files.remove_leftovers(folder)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        if step < 0:
            path.unlink()
            continue
        kept = []
        try:
            for record in tf.data.TFRecordDataset(str(path), buffer_size=_READ_AT_ONCE).as_numpy_iterator():
                if event_pb2.Event.FromString(record).step <= step:
                    kept.append(record)
        except (tf.errors.DataLossError, DecodeError):  # what was being written when the process was killed
            pass
        content = io.BytesIO()
        writer = RecordWriter(content)
        for record in kept:
            writer.write(record)
        files.write_bytes(path, content.getvalue())
