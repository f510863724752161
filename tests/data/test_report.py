"""What is looked for before anything is trained: what spoils numbers is refused, what only hurts is a line."""

import json
import re
from pathlib import Path

import numpy as np
import pictures
import pytest
from pictures import forget


@pytest.fixture
def look(command):
    """What kdrun's stage=data says of arrays, and its results."""

    def run(held: dict[str, np.ndarray], *given: str):
        np.savez("my.npz", **held)
        forget()
        ended = command("stage=data", "data=npz", "data.path=my.npz", *given)
        records = sorted(Path("outputs/data").glob("*/run.json"))
        return ended, json.loads(records[-1].read_text())["results"] if records else None

    return run


def test_good_data_are_counted_and_nothing_is_said(look):
    held = pictures.arrays(120, 40)
    ended, results = look(held, "data.validation_size=20")
    assert ended.code == 0 and "nothing to complain about" in ended.out, ended.err
    assert results["findings"] == [] and results["classes"] == list(map(str, range(10)))
    assert results["counts"] == {"train": [10] * 10, "validation": [2] * 10, "test": [4] * 10}
    (sheet,) = Path("outputs/data").glob("*/contact_sheet.png")
    assert sheet.read_bytes().startswith(b"\x89PNG") and list(sheet.parent.glob("tensorboard/events*"))


def changed(**changes) -> dict[str, np.ndarray]:
    held = {name: array.copy() for name, array in pictures.arrays(120, 40).items()}
    for name, change in changes.items():
        change(held) if name == "all" else held.update({name: change(held[name])})
    return held


def copied(count: int):
    def change(held):
        held["x_test"][:count], held["y_test"][:count] = held["x_train"][:count], held["y_train"][:count]

    return change


def twice(held):
    held["x_train"][7] = held["x_train"][17]  # of one class, as the classes take turns


def disputed(held):
    held["x_train"][7] = held["x_train"][18]


def blank(name: str, places):
    def change(held):
        held[name][places] = np.arange(held[name][places].shape[0], dtype=np.uint8)[:, None, None, None]

    return change


def without(name: str, label: int):
    def change(held):
        chosen = held[f"y_{name}"] != label
        held[f"x_{name}"], held[f"y_{name}"] = held[f"x_{name}"][chosen], held[f"y_{name}"][chosen]

    return change


def rare(held):
    chosen = (held["y_train"] != 3) | (np.cumsum(held["y_train"] == 3) <= 1)
    held["x_train"], held["y_train"] = held["x_train"][chosen], held["y_train"][chosen]


LINES = {
    "a class missing from training": (without("train", 4), r"the train split has no images of 1 of 10 classes: 4"),
    "a class missing from the test": (without("test", 9), r"the test split has no images of 1 of 10 classes: 9"),
    "a class missing from validation": (rare, r"the validation split has no images of 1 of 10 classes: 3"),
    "imbalance": (rare, r"classes are not balanced: 1\d training images of \d, 1 of 3\. Look at balanced accuracy"),
    "test images that are trained on": (copied(3), r"[23] test images are training images, too: image \d"),
    "training images twice": (twice, r"1 training images are copies of others: image \d+"),
    "two labels for one image": (disputed, r"1 images are there with more than one label"),
    "blank training images": (blank("x_train", slice(5, 7)), r"2 training images are of one value: image \d+, image"),
    "blank test images": (blank("x_test", slice(3, 4)), r"1 test images are of one value: image \d+"),
}


@pytest.mark.parametrize("kind", LINES)
def test_what_hurts_is_a_line(look, kind):
    change, said = LINES[kind]
    ended, results = look(changed(all=change), "data.validation_size=20")
    assert ended.code == 0, ended.err
    assert any(re.fullmatch(f"{said}.*", line) for line in results["findings"]), results["findings"]
    assert all(f"data: {line}" in ended.out for line in results["findings"])


SPOILT = {
    "half of the test is trained on": (copied(40), "40 test images are training images, too, so that the test says"),
    "nothing on the training images": (blank("x_train", slice(None)), "all training images are of one value"),
    "nothing on the test images": (blank("x_test", slice(None)), "all test images are of one value"),
    "one class": (lambda held: held.update(y_train=held["y_train"] * 0, y_test=held["y_test"] * 0), "one class only"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("stage", ["data", "pipeline"])
def test_what_spoils_numbers_is_refused(look, command, kind, stage):
    change, said = SPOILT[kind]
    np.savez("my.npz", **changed(all=change))
    forget()
    given = (
        ["data.validation_size=20", "data.train_on_validation=true"] if "half" in kind else ["data.validation_size=20"]
    )
    ended = command(f"stage={stage}", "data=npz", "data.path=my.npz", "batch_size=16", *given)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert said.replace("40 test", "40 of the 40 test") in ended.err
    assert not Path("outputs").exists()
