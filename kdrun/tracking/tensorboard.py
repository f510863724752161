"""A training run in TensorBoard: curves, weight histograms, config, pictures and hyperparameters."""

import io
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError
from omegaconf import OmegaConf
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary import histogram_pb
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from kdrun.registry import register
from kdrun.storage import files
from kdrun.tracking import events
from kdrun.tracking.events import Events
from kdrun.tracking.tracker import End, Epoch, Run, Tracker

_READ_AT_ONCE = 1 << 18  # bytes; TensorFlow warns where it is not said


@register("tracker", "tensorboard")
class TensorBoard(Tracker):
    """Event files below the run's tensorboard/, one folder a split: train, validation, test."""

    def __init__(self, *, histograms: bool):
        self._histograms = histograms
        self._writers: dict[str, Events] = {}

    def start(self, run: Run) -> None:
        """Open the event files: a run's own from the first step on, or cut after the last epoch that is done.

        Config and hyperparameters are shown as text and in the HParams tab.
        """
        # what came after the last epoch comes again; the test set's come at the very end, all at once
        epoch = run.epoch * run.steps_per_epoch
        kept = {"train": epoch, "validation": epoch, "test": 0} if run.step else {}
        for split in ("train", "validation", "test"):
            folder = run.run_dir / "tensorboard" / split
            _cut(folder, kept.get(split, -1))
            self._writers[split] = Events(folder)
        if not run.step:
            config = OmegaConf.to_yaml(run.config)
            self._writers["train"].add(0, text_pb("config", "```yaml\n" + config + "\n```"))
            self._writers["test"].add(0, hparams.hparams_pb(dict(run.hyperparameters), trial_id=run.run_dir.name))
            for writer in self._writers.values():
                writer.flush()

    def epoch(self, epoch: Epoch) -> None:
        """Show the epoch's numbers, and the weights as histograms."""
        for split, values in (("train", epoch.train), ("validation", epoch.validation)):
            curves = {name: value for name, value in values.items() if name not in ("count", "errors")}
            self._writers[split].add(epoch.step, events.scalars(curves))
            if split == "train" and self._histograms:
                pictured = Summary()
                for (
                    weight
                ) in epoch.model.trainable_variables:  # by NumPy: TensorFlow takes seconds for hundreds of them
                    pictured.MergeFrom(histogram_pb(weight.name, weight.numpy()))
                self._writers[split].add(epoch.step, pictured)
            self._writers[split].flush()

    def end(self, end: End) -> None:
        """Show the best weights' test metrics, which go to the HParams tab, and the pictures."""
        import tensorflow as tf

        writer = self._writers["test"]
        writer.add(end.step, events.scalars({f"test/{name}": value for name, value in end.test["best"].items()}))
        encoded = {name: tf.io.encode_png(picture).numpy() for name, picture in end.pictures.items()}
        writer.add(end.step, events.pictures(encoded))
        writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            with suppress(OSError):  # what matters was flushed
                writer.close()


def _cut(folder: Path, step: int) -> None:
    """Take what came after `step` out of a folder's event files; with a negative one they are removed."""
    import tensorflow as tf

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
