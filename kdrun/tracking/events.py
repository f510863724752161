"""TensorBoard's event files, by a writer of our own.

TensorFlow's would load TensorFlow, writes in another thread, and says in lines of its own that a disk is full.
"""

import io
import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary import histogram_pb
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.scalar.summary import scalar_pb
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from kdrun.storage import files

_READ_AT_ONCE = 1 << 18  # bytes; TensorFlow warns where it is not said


class Events:
    """A new event file in a folder, which is made; what finds no room on the disk is an OSError of the call."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, step: int, summary: Summary) -> None:
        """Show something at a step; it is in the file after `flush`."""
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Write what was added."""
        self._file.flush()

    def close(self) -> None:
        """Write what was added and let go of the file, even where there is no room."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())


def cut(folder: Path, step: int) -> None:
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
                if Event.FromString(record).step <= step:
                    kept.append(record)
        except (tf.errors.DataLossError, DecodeError):  # what was being written when the process was killed
            pass
        content = io.BytesIO()
        writer = RecordWriter(content)
        for record in kept:
            writer.write(record)
        files.write_bytes(path, content.getvalue())


def config(values: Mapping) -> Summary:
    """A config, as text."""
    return text_pb("config", "```yaml\n" + OmegaConf.to_yaml(values) + "\n```")


def hyperparameters(values: Mapping, trial: str) -> Summary:
    """The few that tell runs apart, for the HParams tab."""
    return hparams.hparams_pb(dict(values), trial_id=trial)


def histograms(weights: Iterable) -> Summary:
    """Variables' values, by NumPy: TensorFlow takes seconds for hundreds of them."""
    summary = Summary()
    for weight in weights:
        summary.MergeFrom(histogram_pb(weight.name, weight.numpy()))
    return summary


def encoded(pictures: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Pictures uint8 [height, width, 3], by name, as PNG files' bytes."""
    import tensorflow as tf

    return {name: tf.io.encode_png(picture).numpy() for name, picture in pictures.items()}


def scalars(values: Mapping[str, float]) -> Summary:
    """Numbers by name, as curves show them."""
    return Summary(value=[value for name, number in values.items() for value in scalar_pb(name, number).value])


def pictures(encoded: Mapping[str, bytes]) -> Summary:
    """Pictures by name, of PNG files' bytes."""
    images = {name: Summary.Image(colorspace=4, encoded_image_string=png) for name, png in encoded.items()}
    return Summary(value=[Summary.Value(tag=name, image=image) for name, image in images.items()])


def write(folder: Path, files: Mapping[str, Path]) -> None:
    """Write an event file with PNG files, by name, into a folder that is made."""
    events = Events(folder)
    try:
        events.add(0, pictures({name: path.read_bytes() for name, path in files.items()}))
    finally:
        events.close()
