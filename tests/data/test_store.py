"""The store of decoded pictures: filled once, found again, whatever happens meanwhile."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pictures
import pytest
from pictures import NONE, forget

from kdrun.data import datasets, store
from kdrun.data.folder import listed as listed_in
from kdrun.errors import InputError, KdrunError, NoRoom

pytestmark = pytest.mark.usefixtures("in_time")


@pytest.fixture
def folder(tmp_path):
    held = pictures.arrays(60, 10)
    return pictures.write_folder(tmp_path / "all", held, splits=("train",))


def data(folder: Path) -> dict:
    found = {"name": "folder", "path": str(folder), "channels": "auto", "resize": "stretch", "decode_size": 32}
    found |= {"skip_broken": False, "store": str(folder.parent / "store"), "split": "stratified"}
    return {**found, "validation_size": 10, **NONE}


def load(folder: Path):
    forget()
    return datasets.load(data(folder))


def entries(folder: Path) -> dict[str, tuple]:
    """What a store holds: by name, when each of its files was written."""
    held = sorted(path for path in (folder.parent / "store").rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder.parent)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in held}


def test_pictures_are_decoded_once(folder):
    first = load(folder)
    before = entries(folder)
    again = load(folder)
    assert entries(folder) == before and again.sha256 == first.sha256
    assert isinstance(first.train.images, datasets.Rows)


def test_what_was_only_touched_is_not_decoded_again_and_what_changed_is(folder):
    load(folder)
    before = entries(folder)
    touched = sorted(folder.glob("*/*.png"))[7]
    os.utime(touched, (1, 1))
    load(folder)
    after = entries(folder)
    assert {name: after[name] for name in before} == before  # and one small file more, for the other times
    assert len(after) == len(before) + 1 and sum(name.endswith("pixels.npy") for name in after) == 1
    touched.write_bytes(pictures.png(np.full((32, 32, 3), 9, np.uint8)))
    changed = load(folder)
    assert sum(name.endswith("pixels.npy") for name in entries(folder)) == 2
    assert (np.asarray(changed.train.images) == 9).all(axis=(1, 2, 3)).any() or (
        np.asarray(changed.validation.images) == 9
    ).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("file", ["pixels.npy", "digests.npy", "manifest.json", "state"])
def test_a_flipped_byte_is_noticed_and_the_pictures_decoded_again(folder, file, caplog):
    expected = load(folder)
    (pixels,) = (folder.parent / "store").glob("*/pixels.npy")
    (state,) = (folder.parent / "store").glob("*.json")
    path = state if file == "state" else pixels.with_name(file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with caplog.at_level("WARNING", "kdrun"):
        found = load(folder)
    assert "damaged" in caplog.text and found.sha256 == expected.sha256
    assert np.asarray(found.train.images).tobytes() == np.asarray(expected.train.images).tobytes()
    if file != "state":
        assert [path.name.endswith(".damaged") for path in pixels.parent.parent.glob("*.damaged*")] == [True]


@pytest.mark.parametrize("change", ["another picture", "gone"])
def test_a_file_that_changes_while_it_is_read_is_refused(folder, change):
    listed, times = listed_in(folder), Counter()

    def read(place: int) -> bytes:
        times[place] += 1
        again = place == 5 and times[place] > 1
        if again and change == "gone":
            raise FileNotFoundError(2, "No such file or directory")
        return pictures.png(np.full((32, 32, 3), again, np.uint8))

    changing = dataclasses.replace(listed, read=read, stamp={})
    with pytest.raises(InputError, match="was changed while it was read"):
        store.obtain(folder.parent / "store", changing, "auto", 32, "stretch")
    assert not list((folder.parent / "store").glob("*.partial"))


def started(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "kdrun", "stage=data", "data=folder", f"data.path={folder}", "data.image_size=32"]
    command += [f"data.store={folder.parent / 'store'}", f"outputs={folder.parent / 'outputs'}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def many(tmp_path):
    """So many pictures that decoding takes a second."""
    image, labels = pictures.digits(40)
    for copy in range(100):
        for place, label in enumerate(labels):
            below = tmp_path / "many" / pictures.CLASSES[label]
            below.mkdir(parents=True, exist_ok=True)
            changed = image[place].copy()
            changed[0, :2, 0] = divmod(copy, 16)
            (below / f"{place}-{copy}.png").write_bytes(pictures.png(changed))
    return tmp_path / "many"


def wait_for(what, process) -> None:
    while not what():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


@pytest.mark.slow
def test_a_store_that_was_being_filled_when_kdrun_was_killed_is_filled_anew_by_two_at_once(many):
    kept = many.parent / "store"
    process = started(many)
    wait_for(lambda: list(kept.glob("*.partial/pixels.npy")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(kept.glob("*.partial")) and not list(kept.glob("*/manifest.json"))
    both = [started(many), started(many)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("data: decoded in" in each for each in said) == 1, said
    assert len(list(kept.glob("*/pixels.npy"))) == 1 and not list(kept.glob("*.partial"))
    records = [json.loads(path.read_text()) for path in (many.parent / "outputs/data").glob("*/run.json")]
    assert len({record["dataset_sha256"] for record in records}) == 1 and len(records) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_decoding_and_leaves_nothing(many, number):
    process = started(many)
    wait_for(lambda: list((many.parent / "store").glob("*.partial/pixels.npy")), process)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
    assert "Traceback" not in said
    assert not list((many.parent / "store").glob("*.partial")) and not (many.parent / "outputs").exists()


def test_a_full_disk_is_said_and_leaves_nothing(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=100k tmpfs {disk} 2>/dev/null"):
        pytest.skip("no disk can be mounted here")
    try:
        forget()
        with pytest.raises(NoRoom, match="disk is full"):
            datasets.load({**data(folder), "store": str(disk / "store")})
        assert not list((disk / "store").glob("*.partial"))
    finally:
        os.system(f"umount {disk}")


def test_a_store_that_cannot_be_written_is_said(folder, tmp_path):
    (tmp_path / "file").write_text("")
    forget()
    with pytest.raises(KdrunError, match=r"cannot keep the decoded pictures .*data\.store"):
        datasets.load({**data(folder), "store": str(tmp_path / "file" / "store")})
