"""What a run's curves and speed say, by a clock that is set by hand."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from kdrun.tracking import monitor  # noqa: E402

EPOCHS, STEPS, BATCH = 3, 11, 7


@pytest.fixture
def clock(monkeypatch):
    """A function that lets seconds pass."""
    seconds = [100.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: seconds[0])

    def passing(more: float) -> None:
        seconds[0] += more

    return passing


@pytest.fixture
def following(tmp_path):
    with monitor.Monitor(tmp_path, "student", datetime.now(UTC), EPOCHS, STEPS, BATCH, False, "", {}) as found:
        found.start(None)
        found.pause_ended()
        yield found


def test_images_a_second_are_of_the_steps_after_the_first_call(following, clock):
    following.pause_ended()
    for seconds, steps in ((5.0, 3), (1.5, 8), (0.5, 11)):
        clock(seconds)
        following.steps(np.zeros(3), steps)
        clock(40)  # validation
        following.pause_ended()
    speed = following.speed()
    assert speed["images_per_second"] == round(BATCH * (8 + 11) / (1.5 + 0.5), 1) == 66.5
    assert speed["training_seconds"] == 5.0 + 1.5 + 0.5


def test_images_a_second_of_one_call_are_its_own(following, clock):
    following.pause_ended()
    clock(4.0)
    following.steps(np.zeros(3), STEPS)
    assert following.speed()["images_per_second"] == round(BATCH * STEPS / 4, 1)


def test_each_splits_numbers_are_written_under_its_name(following, tmp_path, clock):
    following.pause_ended()
    clock(1.0)
    following.steps(np.zeros(3), STEPS)
    splits = {
        "train": {"loss": 0.1, "accuracy": 0.2},
        "validation": {"accuracy": 0.3, "cross_entropy": 0.4, "teacher_agreement": 0.5, "errors": 6, "count": 7},
    }
    following.epoch(1, splits["train"], splits["validation"], 1, None)
    test = {"best": {"accuracy": 0.8, "cross_entropy": 0.9}, "last": {"accuracy": 0.6, "cross_entropy": 0.7}}
    following.final(test, {"confusion_matrix": np.zeros((2, 2, 3), np.uint8)})
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == [{"epoch": 1, "step": STEPS, "split": split, **values} for split, values in splits.items()]
    following.__exit__()
    shown = {
        split: {
            (tag, event.step): round(float(tf.make_ndarray(event.tensor_proto)), 6)
            for tag in events.Tags()["tensors"]
            if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
            for event in events.Tensors(tag)
        }
        for split in ("train", "validation", "test")
        for events in [EventAccumulator(str(tmp_path / "tensorboard" / split)).Reload()]
    }
    assert shown == {
        split: {(name, STEPS): value for name, value in values.items() if name not in ("errors", "count")}
        for split, values in {**splits, "test": {f"test/{name}": value for name, value in test["best"].items()}}.items()
    }
