"""A comparison's figures as images in TensorBoard. By its own writer of records: TensorFlow's would load TensorFlow."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def write(folder: Path, pictures: Mapping[str, Path]) -> None:
    """Write an event file with the PNG files `pictures`, by name, into a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    images = [
        Summary.Value(tag=name, image=Summary.Image(colorspace=4, encoded_image_string=path.read_bytes()))
        for name, path in pictures.items()
    ]
    events = [Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, summary=Summary(value=images))]
    with (folder / f"events.out.tfevents.{now:.0f}.figures").open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
