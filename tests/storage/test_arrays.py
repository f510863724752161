"""Files of arrays that somebody else may have written, given as data and as teacher: read as they are, or one line.

No TensorFlow: a file that passes gets as far as its import, which the command fixture forbids.
"""

import bz2
import io
import os
import socket
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_untrusted import FEW, damaged

from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.teachers import logits_file as file

STUDENT = ["model@teacher.model=mlp", "model@student.model=mlp", "data=npz", "data.split=first"]
STUDENT += ["data.image_size=8", "data.validation_size=10", "batch_size=16"]
SIZES = {"train": 50, "validation": 10, "test": 20}


pytestmark = pytest.mark.usefixtures("in_time")


def forget() -> None:
    datasets._source.cache_clear()
    datasets._whole.cache_clear()


def npz(arrays: dict, save=np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(params=["data.path", "teacher.logits"])
def target(request, command, write_npz, tmp_path):
    """Which key names the file; the arrays that a good one holds; a function that runs kdrun with it."""
    forget()
    good = write_npz()
    if request.param == "data.path":
        with np.load(good) as held:
            arrays = dict(held)

        def run(path: Path):
            forget()
            return command("stage=student", *STUDENT, f"data.path={path}")
    else:
        sizes = {"validation_size": 10, "train_size": None, "test_size": None}
        data = datasets.load({"name": "npz", "path": str(good), "num_classes": None, **sizes})
        arrays = {split: np.full((n, 3), 0.25, np.float32) for split, n in SIZES.items()}
        arrays["order"] = np.array(datasets.order(data))

        def run(path: Path):
            forget()
            return command("stage=distill", *STUDENT, f"data.path={good}", f"teacher.logits={path}")

    return request.param, arrays, run


def refused(ended, path: Path) -> str:
    assert ended.code == 2 and ended.out == "", ended
    assert ended.err.count("\n") == 1 and ended.err.startswith("kdrun: ") and "Traceback" not in ended.err, ended
    assert str(path) in ended.err
    return ended.err


def taken(ended) -> None:
    assert ended.code == 1 and "import of tensorflow halted" in ended.err, ended


def test_a_good_file_is_taken_compressed_and_linked_to(target, tmp_path):
    _, arrays, run = target
    for save in (np.savez, np.savez_compressed):
        (tmp_path / "held.npz").write_bytes(npz(arrays, save))
        (tmp_path / "link.npz").unlink(missing_ok=True)
        (tmp_path / "link.npz").symlink_to("held.npz")
        taken(run(tmp_path / "link.npz"))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)


SPECIAL = {
    "a FIFO": fifo,
    "a socket": unix_socket,
    "a folder": Path.mkdir,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "a FIFO behind a link": lambda path: (fifo(path.with_suffix(".pipe")), path.symlink_to(path.with_suffix(".pipe"))),
    "nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(target, tmp_path, kind):
    key, _, run = target
    path = tmp_path / "special.npz"
    SPECIAL[kind](path)
    said = refused(run(path), path)
    if key == "teacher.logits":
        assert "for a run: teacher.run=" in said
    assert not (tmp_path / "outputs").exists()


def test_no_idx_file_is_waited_for(command, write_idx):
    folder, _ = write_idx()
    (folder / "train-images-idx3-ubyte").unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(folder / "train-images-idx3-ubyte")
        forget()
        ended = command("stage=student", *STUDENT, "data=fashion_mnist", f"data.path={folder}")
        (folder / "train-images-idx3-ubyte").unlink()
        assert "train-images-idx3-ubyte" in refused(ended, folder)


def header(descr: str, shape: tuple[int, ...], order: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": order, "shape": shape})
    return file.getvalue()


def archive(members: list[tuple[str, bytes]], compression=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile sees that a name is there twice, and writes it
        for name, content in members:
            opened.writestr(name, content)
    return file.getvalue()


def members(arrays: dict, **changes) -> list[tuple[str, bytes]]:
    return [(f"{name}.npy", changes.get(name) or npy(array)) for name, array in arrays.items()]


def first(arrays: dict) -> str:
    return next(iter(arrays))


def changed(arrays: dict, change) -> dict:
    return {**arrays, first(arrays): change(arrays[first(arrays)])}


def flipped(arrays: dict) -> bytes:
    content = npz(arrays)
    place = content.index(b"\x93NUMPY") + 200
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def damaged_deflate(arrays: dict) -> bytes:
    content = npz(arrays, np.savez_compressed)
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    return content[: start + 100] + b"\xff" * 40 + content[start + 140 :]


def claiming(arrays: dict) -> bytes:
    """186 GiB of the first array, in a file of some kB."""
    array = arrays[first(arrays)]
    shape = (200_000_000_000 // (array.itemsize * max(1, array[0].size)), *array.shape[1:])
    return archive(members(arrays, **{first(arrays): header(array.dtype.str, shape) + bytes(500)}))


def trailing(arrays: dict) -> bytes:
    return archive(members(arrays, **{first(arrays): npy(arrays[first(arrays)]) + b"more"}))


def short(arrays: dict) -> bytes:
    return archive(members(arrays, **{first(arrays): npy(arrays[first(arrays)])[:-7]}))


BAD = {
    "a single array": lambda a: npy(a[first(a)]),
    "a flipped byte": flipped,
    "half of it": lambda a: npz(a)[: len(npz(a)) // 2],
    "damaged deflate": damaged_deflate,
    "186 GiB": claiming,
    "numbers after its numbers": trailing,
    "too few numbers": short,
    "a raw member instead": lambda a: archive([(n.removesuffix(".npy"), c) for n, c in members(a)]),
    "a raw member beside it": lambda a: archive([*members(a), (first(a), npy(a[first(a)]))]),
    "another array beside it": lambda a: archive([*members(a), (first(a), npy(np.zeros(3)))]),
    "a text beside it": lambda a: archive([*members(a), (first(a), b"hello")]),
    "a member twice": lambda a: archive([*members(a), (f"{first(a)}.npy", npy(a[first(a)]))]),
    "text": lambda a: b"x_train,y_train\n1,2\n",
    "nothing": lambda a: b"",
    "bzip2": lambda a: archive(members(a), zipfile.ZIP_BZIP2),
    "lzma": lambda a: archive(members(a), zipfile.ZIP_LZMA),
    "objects": lambda a: npz(changed(a, lambda array: array.astype(object))),
    "records": lambda a: npz(changed(a, lambda array: array.view([("r", array.dtype)]))),
    "a negative shape": lambda a: archive(members(a, **{first(a): header("<f4", (-50, -3)) + bytes(600)})),
    "an endless shape": lambda a: archive(members(a, **{first(a): header("<f4", (2**70,)) + bytes(600)})),
    "too many dimensions": lambda a: archive(members(a, **{first(a): header("<f4", (1,) * 70) + bytes(4)})),
    "one array missing": lambda a: npz({n: array for n, array in a.items() if n != first(a)}),
    "bzip2 alone": lambda a: bz2.compress(npz(a)),
}

SAID = {
    "a single array": "as numpy.save writes it",
    "186 GiB": "bytes and the file holds",
    "a raw member instead": "which is no .npy",
    "a raw member beside it": "which is no .npy",
    "a member twice": "2 times",
    "objects": "holds Python objects",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line_before_anything_is_made(target, tmp_path, kind):
    _, arrays, run = target
    path = tmp_path / "bad.npz"
    path.write_bytes(BAD[kind](arrays))
    assert SAID.get(kind, "") in refused(run(path), path)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("target", ["teacher.logits"], indirect=True)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": np.full((50, 3), 1e39)}, "train is float64 with numbers beyond float32, up to 1e+39"),
        ({"test": np.array([[0.0, np.inf, 0.0]] * 20)}, "test is not all finite numbers"),
        ({"order": np.array(["0" * 64] * 2)}, "order is <U64 [2]; it must be one text"),
        ({"order": np.zeros((4, 4))}, "order is float64 [4, 4]; it must be one text"),
        ({"order": np.array("a\nb\x1b[31m" * 9)}, r"its order is 'a\nb\x1b[31ma\n"),
        ({"validation": np.zeros((10, 3), np.int64)}, "validation is int64"),
    ],
)
def test_logits_that_are_none_are_refused(target, tmp_path, change, said):
    _, arrays, run = target
    path = tmp_path / "logits.npz"
    path.write_bytes(npz(arrays | change))
    assert said in refused(run(path), path)


@pytest.mark.parametrize("target", ["teacher.logits"], indirect=True)
def test_logits_of_any_float_that_float32_can_hold_are_taken(target, tmp_path):
    _, arrays, run = target
    path = tmp_path / "logits.npz"
    for dtype in (np.float16, ">f4", np.float64):
        path.write_bytes(npz(arrays | {split: arrays[split].astype(dtype) for split in SIZES}))
        taken(run(path))


@FEW
@given(data=st.data())
def test_any_damage_to_a_file_of_logits_is_refused_or_harmless(tmp_path, write_npz, data):
    sizes = {"validation_size": 10, "train_size": None, "test_size": None}
    dataset = datasets.load({"name": "npz", "path": str(write_npz()), "num_classes": None, **sizes})
    arrays = {split: np.full((n, 3), 0.25, np.float32) for split, n in SIZES.items()}
    arrays["order"] = np.array(datasets.order(dataset))
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    path = tmp_path / "any.npz"
    path.write_bytes(damaged(data.draw, npz(arrays, save)))
    try:
        read = file.logits(path, dataset)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert all(np.array_equal(read[split], arrays[split]) for split in SIZES)


def test_a_file_that_is_swapped_between_the_look_and_the_reading_is_noticed(tmp_path, write_npz):
    """Whether it is replaced, or written into; and where sizes stay the same."""
    keys = {"name": "npz", "num_classes": None, "validation_size": 10, "train_size": None, "test_size": None}
    other = np.full((60, 8, 8), 7, np.uint8)
    for swap in (lambda path: path.replace(tmp_path / "my.npz"), lambda path: path_written(path, tmp_path / "my.npz")):
        path = write_npz()
        forget()
        datasets.shapes({**keys, "path": str(path)})
        swap(write_npz("other.npz", x_train=other))
        with pytest.raises(InputError, match="changed while kdrun was reading it"):
            datasets.load({**keys, "path": str(path)})


def path_written(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
