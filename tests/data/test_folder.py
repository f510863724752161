"""Folders of pictures: what belongs to which class and split, what is left out, what is refused, all in one report."""

import os

import numpy as np
import pictures
import pytest
from pictures import CLASSES, NONE, forget
from PIL import Image

from kdrun.data import datasets

pytestmark = pytest.mark.usefixtures("in_time")
LOOK = ["stage=data", "data=folder", "data.path=all", "data.image_size=32"]


@pytest.fixture
def look(command, tmp_path):
    """Run kdrun's stage=data on the folder `all`, looked at anew."""

    def run(*given):
        forget()
        return command(*LOOK, *given)

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder `all` of 60 pictures in ten classes, without splits."""
    held = pictures.arrays(60, 10)
    return pictures.write_folder(tmp_path / "all", held, splits=("train",))


def load(path, **keys):
    forget()
    data = {"name": "folder", "path": str(path), "channels": "auto", "resize": "stretch", "decode_size": 32}
    data |= {"skip_broken": False, "store": str(path.parent / "store"), "validation_size": 10, "split": "stratified"}
    return datasets.load({**data, **NONE, **keys})


def refused(ended, *said):
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    for each in said:
        assert each in ended.err, ended.err
    assert (
        "outputs/data" not in "".join(str(path) for path in os.scandir("outputs")) if os.path.exists("outputs") else 1
    )


def test_classes_are_folders_and_nested_folders_belong_to_the_one_above(look, folder):
    before = load(folder)
    (folder / "cat" / "black" / "old").mkdir(parents=True)
    for place, path in enumerate(sorted((folder / "cat").glob("*.png"))[:4]):
        path.rename(folder / "cat" / ("black" if place % 2 else "black/old") / path.name)
    after = load(folder)
    assert after.sha256 == before.sha256 and after.class_names == CLASSES
    ended = look()
    assert ended.code == 0 and "left out" not in ended.out, ended.out


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST"), ("train", "validation")])
def test_splits_are_folders_of_the_names_that_people_give(folder, tmp_path, names):
    held = pictures.arrays(60, 10)
    for name in names:
        part = "test" if name.lower() == "test" else "train"
        below = tmp_path / "split" / name
        pictures.write_folder(below, {"x_train": held[f"x_{part}"], "y_train": held[f"y_{part}"]}, ("train",))
    if len(names) == 2:
        forget()
        with pytest.raises(datasets.InputError, match="validation images and no test images"):
            load(tmp_path / "split", validation_size=None)
        return
    found = load(tmp_path / "split", validation_size=None, train_on_validation=False)
    assert [len(part.labels) for part in found[:3]] == [60, 60, 10]


def test_what_is_left_out_is_counted(look, folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "a.png").write_bytes(pictures.png(np.zeros((4, 4), np.uint8)))
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "cat" / "notes.txt").write_text("cats")
    (folder / "README").write_text("mine")
    (folder / "empty").mkdir()
    ended = look()
    assert ended.code == 0, ended.err
    for count, why in ((2, "hidden"), (1, "not pictures by name"), (1, "in no class's folder")):
        assert f"{count} left out: {why}" in ended.out, ended.out
    assert "1 left out: classes without pictures" in ended.out


def test_circles_of_links_end_and_links_to_pictures_are_followed(look, folder, tmp_path):
    before = load(folder)
    (folder / "cat" / "again").symlink_to(folder / "cat")
    (folder / "cat" / "all").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    moved = sorted((folder / "dog").glob("*.png"))[0]
    moved.rename(tmp_path / "elsewhere" / moved.name)
    moved.symlink_to(tmp_path / "elsewhere" / moved.name)
    after = load(folder)
    assert len(after.train.labels) > len(before.train.labels)  # of the folder above, each class once more, as cats
    assert look().code == 0


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no picture"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("skip", [False, True])
def test_broken_pictures_are_named_all_in_one_and_left_out_when_that_is_asked_for(look, folder, skip):
    paths = sorted(folder.glob("*/*.png"))
    for place, damage in enumerate(BROKEN.values()):
        damage(paths[11 * place])
    ended = look(f"data.skip_broken={str(skip).lower()}")
    if not skip:
        named = [str(paths[11 * place].relative_to(folder)) for place in range(len(BROKEN))]
        refused(ended, "5 of 60 pictures cannot be read", "data.skip_broken=true", *named)
        return
    assert ended.code == 0 and "5 of 60 pictures cannot be read, and are left out" in ended.out, ended.err
    assert "5 left out: broken" in ended.out
    found = load(folder, skip_broken=True)
    for place in range(len(BROKEN)):
        paths[11 * place].unlink()
    assert load(folder).sha256 == found.sha256


REFUSED = {
    "a file": (lambda path: path.write_text("x"), "is a file", "data=npz, data=table"),
    "nothing in it": (lambda path: path.mkdir(), "holds no pictures", "DIR/CLASS/*.jpg"),
    "not there": (lambda path: None, "does not exist", "a folder of pictures"),
    "pictures without classes": (
        lambda path: (path.mkdir(), (path / "a.png").write_bytes(pictures.png(np.zeros((4, 4), np.uint8)))),
        "holds no pictures",
        "DIR/CLASS/*.jpg",
    ),
    "one class": (
        lambda path: pictures.write_folder(path, {"x_train": pictures.digits(3)[0], "y_train": [1, 1, 1]}, ("train",)),
        "one class only",
        "at least 2",
    ),
    "two words for one split": (
        lambda path: [(path / name / "cat").mkdir(parents=True) for name in ("train", "val", "valid")],
        "val, valid",
        "mean the same split",
    ),
    "nothing but broken ones": (
        lambda path: ((path / "a").mkdir(parents=True), (path / "a" / "b.png").write_bytes(b"")),
        "1 of 1 pictures cannot be read",
        "it is empty",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused(look, tmp_path, kind):
    make, *said = REFUSED[kind]
    make(tmp_path / "all")
    refused(look(), *said)


def test_pictures_of_many_sizes_become_squares_of_one(folder):
    wide = Image.fromarray((np.arange(400) % 251).astype(np.uint8).reshape(10, 40))
    wide.save(folder / "cat" / "wide.png")
    found = load(folder, decode_size=24)
    assert found.train.images.shape[1:] == (24, 24, 3)
    assert load(folder, decode_size=24, channels=1).train.images.shape[1:] == (24, 24, 1)
    sums = {load(folder, decode_size=24, resize=resize).sha256 for resize in ("stretch", "crop", "pad")}
    assert len(sums) == 3


def test_names_of_any_script_and_length_are_shown_as_they_are(look, folder):
    (folder / "ant").rename(folder / ("ä[bold]" + "長" * 40))
    (folder / "bee").rename(folder / "<b>&amp;")
    ended = look()
    assert ended.code == 0 and "<b>&amp;" in ended.out and "ä[bold]長" in ended.out, ended.out
