"""TensorBoard's event files, by a writer of our own.

TensorFlow's would load TensorFlow, writes in another thread, and says in lines of its own that a disk is full.
"""

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter


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
