"""Summaries that TensorBoard shows of a training run, and event files cut for one that goes on.

Beside events.py, since these modules of TensorBoard's load TensorFlow.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary import histogram_pb
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from kdrun.storage import files

_READ_AT_ONCE = 1 << 18  # bytes; TensorFlow warns where it is not said


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
