"""The command line: what it refuses and how it says so, its help, its completion. Nothing is trained here."""

import hashlib
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import zipfile

import hydra
import identities
import numpy as np
import pytest
from omegaconf import OmegaConf

from kdrun.cli.compose import config_dir
from kdrun.config import schema as config
from kdrun.data import datasets
from kdrun.storage.manifest import sealed

STAGES = ("adjust_bias", "cache", "compare", "data", "distill", "evaluate", "export", "generations", "mutual")
STAGES += ("pipeline", "predict", "specialists", "student", "teacher")
STUDENT = ["stage=student", "model@student.model=mlp", "batch_size=16"]
ON_NPZ = ["data=npz", "data.validation_size=10", "data.split=first", "data.image_size=32"]


def assert_refused(ended, *expected):
    """One line on stderr that holds what is expected, exit code 2, nothing on stdout."""
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    assert ended.err.startswith("kdrun: ") and ended.err.endswith("\n") and ended.err.count("\n") == 1, ended.err
    assert ended.out == ""
    for part in expected:
        assert part in ended.err, ended.err


NOT_FINITE = [
    pytest.param([f"{key}={value}"], [key, f"got {value}"], id=f"{key}={value}")
    for key in ("alpha", "temperature", "optimizer.learning_rate", "optimizer.weight_decay")
    for value in ("nan", "inf", "-inf")
]
BAD_VALUES = {
    # unknown and deleted keys
    "alfa=1": ["alfa: there is no such key", "alpha"],
    "temprature=1": ["temprature: there is no such key", "temperature"],
    "student.model.growth=3": ["student.model.growth: there", "student.model.growth_rate"],
    "teacher.batchsize=2": ["teacher.batchsize: there", "teacher.batch_size"],
    "student.alpha=0.5": ["student.alpha: there", "Did you mean alpha"],
    "data.augment.jiter=1": ["data.augment.jiter: there", "data.augment.jitter"],
    "+foo=1": ["foo: there is no such key", "--cfg job"],
    "++foo=1": ["foo: there is no such key", "--cfg job"],
    "+student.model.filters=[4]": ["student.model.filters: there is no such key"],
    "++teacher.foo=2": ["teacher.foo: there is no such key"],
    "teacher=5": ["teacher: there is no such key", "teacher.run"],
    "hydra.foo=1": ["hydra.foo=1", "hydra.launcher.*", "--config-dir"],
    "~alpha": ["alpha was removed", "~alpha"],
    "~teacher.epochs": ["teacher.epochs was removed", "~teacher"],
    "~optimizer": ["optimizer.", "was removed", "~optimizer"],
    # wrong types
    "epochs=ten": ["epochs must be a whole number of at least 1", "'ten'"],
    "epochs=1.5": ["epochs must be a whole number", "1.5"],
    "epochs=true": ["epochs must be a whole number", "got true"],
    "alpha=true": ["alpha must be a number from 0 to 1", "got true"],
    "alpha=null": ["alpha must be a number from 0 to 1", "got null"],
    "alpha=": ["alpha must be a number from 0 to 1", "''"],
    "alpha=[0.5]": ["alpha must be a number from 0 to 1", "[0.5]"],
    "seed=-1": ["seed must be a whole number from 0 to 2147483647", "-1"],
    "reuse=maybe": ["reuse must be true or false", "'maybe'"],
    "reuse=1": ["reuse must be true or false", "got 1"],
    "student.model.blocks=6": ["student.model.blocks must be a list", "got 6"],
    "student.model.blocks=[]": ["student.model.blocks must be a list", "not empty", "got []"],
    "student.model.blocks=[6,0]": ["student.model.blocks must be a list", "at least 1", "[6, 0]"],
    "student.model.growth_rate=0": ["student.model.growth_rate must be a whole number of at least 1", "got 0"],
    "teacher.run=5": ["teacher.run must be a text", "got 5"],
    "outputs=": ["outputs must be a text, not empty", "''"],
    # out of range
    "alpha=-0.1": ["alpha must be a number from 0 to 1", "-0.1"],
    "alpha=1.1": ["alpha must be a number from 0 to 1", "1.1"],
    "temperature=0": ["temperature must be a number from 1e-06 to 1e+06", "got 0"],
    "temperature=-1": ["temperature must be a number from 1e-06", "-1"],
    "temperature=1e7": ["temperature must be", "to 1e+06", "objective=logit_mse"],
    "temperature_end=1e25": ["temperature_end must be", "to 1e+06", "objective=logit_mse"],
    "batch_size=0": ["batch_size must be a whole number of at least 1", "got 0"],
    "batch_size=50001": ["batch_size=50001", "at most 50000"],
    "epochs=0": ["epochs must be a whole number of at least 1", "got 0"],
    "optimizer.learning_rate=0": ["optimizer.learning_rate must be a number above 0", "got 0"],
    "optimizer.beta_1=1": ["optimizer.beta_1 must be a number from 0 to below 1", "got 1"],
    "optimizer.warmup_epochs=11": ["optimizer.warmup_epochs=11", "epochs=10"],
    "data.augment.jitter=28": ["data.augment.jitter=28", "below 28"],
    "data.augment.resized_crop=0": ["data.augment.resized_crop must be a number from 0 to 1", "got 0"],
    "data.augment.colour.hue=0.6": ["data.augment.colour.hue must be a number from 0 to 0.5", "got 0.6"],
    "data.augment.colour.hue=0.1": ["data.augment.colour.hue=0.1", "grayscale", "Set it to 0"],
    "student.augment.colour.saturation=2": ["data.augment.colour.saturation=2", "grayscale"],
    "data.augment.cutout=29": ["data.augment.cutout=29", "28x28", "at most 28"],
    "data.augment.cutout=2.5": ["data.augment.cutout must be a whole number of pixels, or a part", "got 2.5"],
    "data.augment.views=0": ["data.augment.views must be a whole number of at least 1 or null", "got 0"],
    "data.augment.views=4": ["data.augment.views=4", "nothing to draw", "jitter"],
    "data.augment.jitter=65": ["data.augment.jitter must be a whole number from 0 to 64", "65"],
    "data.image_size=28": ["data.image_size=28", "last pooling", "data.image_size=29"],
    "teacher.image_size=28": ["teacher.image_size=28 is too small for teacher.model=", "teacher.image_size=29"],
    "student.image_size=28": ["student.image_size=28 is too small for student.model=", "student.image_size=29"],
    "data.normalise=nope": ["data.normalise must be one of none, dataset, imagenet", "'nope'"],
    "data.normalise=[[1],[0]]": ["data.normalise must be a number above 0", "got 0"],
    "data.normalise=[[1]]": ["data.normalise must be two lists", "[[0.5],[0.25]]"],
    "data.normalise=[[1],[1,1,1]]": ["data.normalise must be as many means as deviations"],
    "data.normalise=imagenet": ["data.normalise=imagenet is for images of 3 channel(s), and mnist's have 1", "dataset"],
    "data.image_size=0": ["data.image_size must be a whole number", "got 0"],
    "data.validation_size=60000": ["data.validation_size=60000", "below 60000"],
    "data.train_size=50001": ["data.train_size=50001", "at most 50000"],
    "data.test_size=10001": ["data.test_size=10001", "at most 10000"],
    "data.train_size=0": ["data.train_size must be a whole number", "or null", "got 0"],
    # names
    "data=nope": ["data=nope", "fashion_mnist, folder, mnist, npz"],
    "model@student.model=nope": ["model=nope", "convnet, densenet, densenet_12, mlp"],
    "optimizer=nope": ["optimizer=nope", "adabelief, adam, adamw, sgd"],
    "objective=nope": ["objective=nope", "Allowed: attention, contrastive", " kd, "],
    "stage=nope": [
        "stage=nope",
        "distill, evaluate, export, generations, mutual, pipeline, predict, specialists, student",
    ],
    "experiment=nope": ["experiment=nope", "keras_example, notebook, notebook_32, paper/distilled", "quick, tuned_32"],
    "precision=nope": ["precision must be one of auto, float32, mixed_bfloat16, mixed_float16", "'nope'"],
    "optimizer.schedule=step": ["optimizer.schedule=step", "optimizer.step_epochs=null", "step_epochs=[150,180,210]"],
    "optimizer.step_epochs=[3]": ["optimizer.schedule=constant", "do not go together"],
    "optimizer.step_epochs=[0]": ["optimizer.step_epochs must be a list of whole numbers of at least 1", "[0]"],
    "optimizer.step_factor=0": ["optimizer.step_factor must be a number from 0 to 1", "got 0"],
    "optimizer.clip_norm=0": ["optimizer.clip_norm must be a number above 0", "got 0"],
    "optimizer.ema=1": ["optimizer.ema must be a number from 0 to below 1", "got 1"],
    "optimizer.decay=nope": ["optimizer.decay must be one of all, weights", "'nope'"],
    "optimizer.schedule=nope": ["optimizer.schedule must be one of constant, cosine, step", "'nope'"],
    "student.model.name=mlp": ["student.model.name cannot be set by hand", "model@student.model=mlp"],
    "++data.name=npz": ["data.name cannot be set by hand", "data=npz"],
    "model=mlp": ["model", "model@student.model"],
    "data@x=mnist": ["data@x"],
    # what must be given
    "stage=evaluate": ["run or file must be given", "run=RUN_DIRECTORY", "file=FILE"],
    "data=npz": ["data.path must be given", "data.path=VALUE"],
    "alpha=???": ["alpha must be given", "alpha=VALUE"],
    "data.include_classes=[0,???]": ["data.include_classes must be given", "data.include_classes=VALUE"],
    # not an override, or not one value
    "alpha=[": ["alpha=[", "key=value"],
    "alpha": ["alpha", "key=value"],
    "alpha==1": ["alpha==1", "key=value"],
    "=3": ["=3", "key=value"],
    "alpha=${nope}": ["nope", "alpha"],
    "alpha=${alpha}": ["alpha", "ecursive"],
    "temperature=1,2": ["temperature=1,2", "--multirun"],
}
BAD_LINES = [
    (["optimizer=sgd", "optimizer.momentum=1"], ["optimizer.momentum must be", "below 1", "got 1"]),
    (
        ["optimizer.schedule=step", "optimizer.step_epochs=[3,5]", "epochs=5"],
        ["optimizer.step_epochs=[3, 5]", "epochs=5", "below 5"],
    ),
    (["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"], ["optimizer.nesterov=true", "momentum"]),
    (["model@student.model=mlp", "student.model.input_dropout=1.0"], ["student.model.input_dropout", "below 1"]),
    (["model@student.model=mlp", "student.model.hidden_dropout=-0.5"], ["student.model.hidden_dropout", "-0.5"]),
    (["data.train_size=100", "batch_size=50", "student.batch_size=101"], ["student.batch_size=101", "at most 100"]),
    (["experiment=convnets", "student.model.growth_rate=8"], ["student.model.growth_rate: there is no such key"]),
    (["objective=attention", "model@student.model=mlp", "batch_size=16"], ["attention", "vector"]),
    (
        ["objective=fitnet", "objective.fitnet.layers=[block1:embedding]"],
        ["fitnet", "block1:embedding is a map on one"],
    ),
    (["objective=review", "objective.review.layers=[embedding]"], ["review", "embedding is a vector"]),
    (["stage=evaluate", "run=[a,b]"], ["run must be one run directory, got ['a', 'b']"]),
    (["stage=evaluate", "run=nowhere"], ["nowhere is not a run directory", "run.json"]),
    (["-m", "temperature=1,-2"], ["temperature must be a number from 1e-06", "-2"]),
    (["-m", "alpha=0.1,0.2", "temperature=range(-1,2)"], ["temperature must be a number from 1e-06", "-1"]),
    (["-m", "stage=student", "data.image_size=32,28"], ["data.image_size=28", "data.image_size=29"]),
    (["-m", "data=mnist,nope"], ["data=nope", "fashion_mnist, folder, mnist, npz"]),
    (["-m", "temperature=interval(1,2)"], ["INTERVAL"]),
    (["--config-dir", "nope"], ["nope"]),
    (["--config-name", "nope"], ["nope"]),
    (["--config-path", "nope"], ["--config-path", "--config-dir"]),
    (["--experimental-rerun", "nope"], ["--experimental-rerun"]),
    (["temperature=1" + "0" * 400], ["temperature must be a number"]),
]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [pytest.param([argument], expected, id=argument) for argument, expected in BAD_VALUES.items()]
    + NOT_FINITE
    + [pytest.param(line, expected, id=" ".join(line)[:60]) for line, expected in BAD_LINES],
)
def test_bad_config_is_refused(command, tmp_path, arguments, expected):
    assert_refused(command(*arguments), *expected)
    assert os.listdir(tmp_path) == []  # neither a run directory nor anything else


def test_unknown_flag_is_refused(command, tmp_path):
    ended = command("--nope")
    assert ended.code == 2
    assert "--nope" in ended.err and "Traceback" not in ended.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("in_the_way", "arguments"),
    [
        ("outputs", STUDENT),
        ("outputs", ["-m", *STUDENT, "seed=1,2"]),
        ("file", [*STUDENT, "outputs=file"]),
        ("file", [*STUDENT, "outputs=file/below"]),
        ("outputs/student", STUDENT),
        ("long", [*STUDENT, f"outputs={'o' * 300}"]),
    ],
)
def test_outputs_that_cannot_be_written_to_are_refused(command, tmp_path, in_the_way, arguments):
    """A regular file is in the way: permission bits would not stop root."""
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("kept")
    assert_refused(command(*arguments), "outputs", "Set outputs")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / in_the_way]
    assert (tmp_path / in_the_way).read_text() == "kept"


# Datasets


def _header(shape, descr="|u1") -> bytes:
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": descr, "fortran_order": False, "shape": shape})
    return written.getvalue()


def _with_member(path, name: str, content: bytes):
    """The same archive with one member's bytes replaced."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()} | {name: content}
    with zipfile.ZipFile(path, "w") as archive:
        for member, held in members.items():
            archive.writestr(member, held)
    return path


def _overwritten(path, offset: int, content: bytes):
    held = bytearray(path.read_bytes())
    held[offset : offset + len(content)] = content
    path.write_bytes(held)
    return path


def _flagged(path, local: tuple[int, bytes], central: tuple[int, bytes]):
    """Some header fields of the archive's first member overwritten, in both places that hold them."""
    start = path.read_bytes().index(b"PK\x01\x02")
    return _overwritten(_overwritten(path, *local), start + central[0], central[1])


def _missing(write):
    return write().with_name("missing.npz")


def _directory(write):
    return write().parent


def _truncated(write):
    path = write()
    path.write_bytes(path.read_bytes()[:3000])
    return path


def _not_a_zip(write):
    path = write()
    path.write_text("x_train,y_train\n")
    return path


def _a_single_array(write):
    path = write()
    with path.open("wb") as file:
        np.save(file, np.zeros((60, 8, 8), np.uint8))
    return path


def _bits_flipped(write):
    """Far from the header, so that only reading the whole array can notice."""
    path = write(x_train=np.zeros((60, 100, 100), np.uint8), x_test=np.zeros((20, 100, 100), np.uint8))
    return _overwritten(path, path.read_bytes().index(b"\x93NUMPY") + 500_000, b"\xff")


def _damaged_deflate(write):
    """Damage at the very start of the compressed data: already the header cannot be inflated."""
    path = write(save=np.savez_compressed)
    name_length, extra_length = struct.unpack("<HH", path.read_bytes()[26:30])
    return _overwritten(path, 30 + name_length + extra_length, b"\xff" * 40)


def _object_array(write):
    images = np.empty(60, object)
    images[:] = [np.zeros((8, 8), np.uint8)] * 60
    return write(x_train=images)


BAD_NPZ = {
    "missing": (_missing, ["data.path", "missing.npz does not exist"]),
    "a directory": (_directory, ["not a readable .npz"]),
    "truncated": (_truncated, ["my.npz", "not a readable .npz"]),
    "not a zip": (_not_a_zip, ["my.npz", "not a readable .npz"]),
    "a single array": (_a_single_array, ["my.npz", "not a readable .npz"]),
    "bits flipped": (_bits_flipped, ["my.npz", "x_train", "damaged"]),
    "damaged deflate": (_damaged_deflate, ["my.npz"]),
    "encrypted": (lambda w: _flagged(w(), (6, b"\1"), (8, b"\1")), ["my.npz"]),
    "unknown compression": (lambda w: _flagged(w(), (8, b"\x63"), (10, b"\x63")), ["my.npz"]),
    "2-D images": (lambda w: w(x_train=np.zeros((60, 64), np.uint8)), ["x_train has shape [60, 64]", "must be [n, h"]),
    "5-D images": (lambda w: w(x_train=np.zeros((60, 1, 8, 8, 1), np.uint8)), ["x_train has shape", "must be [n, h"]),
    "5 channels": (lambda w: w(x_train=np.zeros((60, 8, 8, 5), np.uint8)), ["[60, 8, 8, 5]", "1 or 3"]),
    "a number": (lambda w: w(x_train=np.uint8(3)), ["x_train has shape []"]),
    "no images": (lambda w: w(x_test=np.zeros((0, 8, 8), np.uint8)), ["x_test", "not empty"]),
    "float images": (lambda w: w(x_train=np.zeros((60, 8, 8))), ["x_train is float64", "must be uint8"]),
    "float labels": (lambda w: w(y_train=np.zeros(60)), ["y_train is float64", "must be integers"]),
    "durations as labels": (lambda w: w(y_train=np.zeros(60, "m8[s]")), ["y_train is timedelta64", "integers"]),
    "text labels": (lambda w: w(y_train=np.array(["a"] * 60)), ["y_train is <U1", "must be integers"]),
    "2-D labels": (lambda w: w(y_train=np.zeros((60, 3), int)), ["y_train has shape [60, 3]", "argmax(axis=1)"]),
    "negative labels": (lambda w: w(y_test=np.arange(20) % 3 - 1), ["y_test holds labels from -1", "from 0 to 2"]),
    "a test label never trained on": (lambda w: w(y_test=np.arange(20) % 4), ["y_test holds labels from 0 to 3"]),
    "one class": (lambda w: w(y_train=np.zeros(60, int), y_test=np.zeros(20, int)), ["one class"]),
    "lengths that differ": (lambda w: w(y_train=np.arange(59) % 3), ["y_train has shape [59]", "60 images"]),
    "an object array": (_object_array, ["x_train holds Python objects", "numbers"]),
    "sizes that differ": (lambda w: w(x_test=np.zeros((20, 9, 8), np.uint8)), ["x_train's images are [8, 8]", "one s"]),
    "an array missing": (lambda w: w(y_test=None), ["y_test is not there", "must be [20]"]),
    "a header that claims too much": (
        lambda w: _with_member(w(), "x_train.npy", _header((10**9, 28, 28)) + bytes(100)),
        ["x_train claims 784000000000 bytes", "the file holds 2"],
    ),
    "negative sizes": (
        lambda w: _with_member(w(), "x_train.npy", _header((-60, -8, 8)) + bytes(3840)),
        ["x_train", "my.npz"],
    ),
    "no header": (lambda w: _with_member(w(), "x_train.npy", b"hello"), ["my.npz", "not a readable .npz"]),
    "a header of a newer version": (
        lambda w: _with_member(w(), "x_train.npy", b"\x93NUMPY\x09\0" + bytes(200)),
        ["my.npz", "not a readable .npz"],
    ),
    "a header that is code": (
        lambda w: _with_member(w(), "x_train.npy", b"\x93NUMPY\x01\0\x20\0" + b"__import__('os').abort()".ljust(32)),
        ["my.npz", "not a readable .npz"],
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz_file_is_refused(command, tmp_path, write_npz, case):
    make, expected = BAD_NPZ[case]
    path = make(write_npz)
    assert_refused(command(*STUDENT, *ON_NPZ, f"data.path={path}"), str(path), *expected)
    assert not (tmp_path / "outputs").exists()


def test_labels_beyond_num_classes_are_refused(command, tmp_path, write_npz):
    ended = command(*STUDENT, *ON_NPZ, f"data.path={write_npz()}", "data.num_classes=2")
    assert_refused(ended, "y_train holds labels from 0 to 2", "with 2 classes", "from 0 to 1")
    assert not (tmp_path / "outputs").exists()


def test_batch_larger_than_a_small_training_split_is_refused(command, tmp_path, write_npz):
    ended = command(*STUDENT, *ON_NPZ, f"data.path={write_npz()}", "batch_size=51")
    assert_refused(ended, "student.batch_size=51", "50 images", "at most 50")
    assert not (tmp_path / "outputs").exists()


def _idx_changed(name: str, change):
    def make(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return make


BAD_IDX = {
    "file missing": (
        lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(),
        ["holds no t10k-labels-idx1-ubyte", "four IDX files"],
    ),
    "truncated": (_idx_changed("train-images-idx3-ubyte", lambda b: b[:-1]), ["3839 bytes of data", "says 3840"]),
    "too long": (_idx_changed("train-images-idx3-ubyte", lambda b: b + b"0"), ["3841 bytes of data", "says 3840"]),
    "truncated header": (_idx_changed("t10k-images-idx3-ubyte", lambda b: b[:9]), ["t10k-images", "not an IDX file"]),
    "bad magic": (
        _idx_changed("train-labels-idx1-ubyte", lambda b: b"\0\0\x09" + b[3:]),
        ["train-labels", "not an ID"],
    ),
    "lengths that differ": (
        _idx_changed("train-labels-idx1-ubyte", lambda b: b[:7] + bytes([59]) + b[8:-1]),
        ["y_train has shape [59]", "60 images"],
    ),
    "label out of range": (
        _idx_changed("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0a"),
        ["to 10", "from 0 to 9"],
    ),
    "not gzipped": (
        lambda f: (f / "train-images-idx3-ubyte").rename(f / "train-images-idx3-ubyte.gz"),
        ["train-images-idx3-ubyte.gz", "cannot be read"],
    ),
    "gzip cut off": (
        lambda f: (
            (f / "train-images-idx3-ubyte")
            .rename(f / "train-images-idx3-ubyte.gz")
            .write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03")
        ),
        ["train-images-idx3-ubyte.gz", "cannot be read"],
    ),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_fashion_mnist_file_is_refused(command, tmp_path, write_idx, case):
    change, expected = BAD_IDX[case]
    folder, _ = write_idx()
    change(folder)
    ended = command(*STUDENT, "data=fashion_mnist", "data.validation_size=10", f"data.path={folder}")
    assert_refused(ended, str(folder), *expected)
    assert not (tmp_path / "outputs").exists()


def test_fashion_mnist_folder_that_does_not_exist_is_refused(command, tmp_path):
    ended = command(*STUDENT, "data=fashion_mnist", f"data.path={tmp_path / 'nowhere'}")
    assert_refused(ended, "data.path", "nowhere does not exist", "apt-get install dataset-fashion-mnist")
    assert os.listdir(tmp_path) == []


# Teachers, and runs to evaluate


@pytest.fixture
def on_npz(write_npz):
    """Overrides for a distillation on a small dataset, and that dataset's sha256."""
    path = write_npz()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ["stage=distill", *STUDENT[1:], *ON_NPZ, "model@teacher.model=mlp", f"data.path={path}"], digest


@pytest.fixture
def write_run(tmp_path, on_npz):
    """Write the record of a finished teacher run that fits the small dataset, with some facts changed."""

    def write(folder: str = "teacher_run", **changes):
        run_dir = tmp_path / folder
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "checkpoints/best.weights.h5").write_bytes(b"weights")
        data = {
            "name": "npz",
            "path": on_npz[0][-1].removeprefix("data.path="),
            "num_classes": None,
            "image_size": 32,
            "validation_size": 10,
            "train_size": None,
            "test_size": None,
        }
        record = {
            "stage": "teacher",
            "status": "completed",
            "dataset_sha256": on_npz[1],
            "num_classes": 3,
            "files": {"checkpoints/best.weights.h5": hashlib.sha256(b"weights").hexdigest()},
            "finished": "2026-01-01T00:00:00.000000+00:00",
            "config": {"stage": "teacher", "data": data | changes.pop("data", {})},
        } | changes
        record = {key: value for key, value in record.items() if value is not None}
        (run_dir / "run.json").write_text(json.dumps(sealed(record)))
        return run_dir

    return write


def _with_content(content: bytes):
    def make(write_run):
        run_dir = write_run()
        (run_dir / "run.json").write_bytes(content)
        return run_dir

    return make


def _weights_changed(write_run):
    run_dir = write_run()
    (run_dir / "checkpoints/best.weights.h5").write_bytes(b"other weights")
    return run_dir


def _weights_gone(write_run):
    run_dir = write_run()
    (run_dir / "checkpoints/best.weights.h5").unlink()
    return run_dir


BAD_RECORDS = {
    "does not exist": (lambda w: w().with_name("nowhere"), ["nowhere is not a run directory", "run.json"]),
    "a file": (lambda w: w() / "run.json", ["is not a run directory"]),
    "damaged json": (_with_content(b'{"stage": "teacher", "status"'), ["run.json is damaged"]),
    "not text": (_with_content(b"\xff\xfe\0\x81"), ["run.json is damaged"]),
    "empty": (_with_content(b""), ["run.json is damaged"]),
    "another kind of record": (
        _with_content(b'{"name": "x"}'),
        ["run.json is damaged, or not the record of a kdrun run"],
    ),
    "a list": (_with_content(b"[1, 2]"), ["run.json is damaged, or not the record of a kdrun run"]),
    "an empty config": (lambda w: w(config={}), ["run.json"]),
    "a config that is none": (lambda w: w(config="x"), ["run.json"]),
    "running": (lambda w: w(status="running"), ["is interrupted, not completed"]),
    "failed": (lambda w: w(status="failed"), ["is failed, not completed"]),
    "a pipeline": (lambda w: w(stage="pipeline"), ["is a pipeline run"]),
}
BAD_TEACHERS = BAD_RECORDS | {
    "another dataset": (
        lambda w: w(dataset_sha256="0" * 64, data={"name": "mnist"}),
        ["was trained on mnist (sha256 000000000000)", "this config is for npz"],
    ),
    "other classes": (lambda w: w(num_classes=10), ["tells 10 classes apart", "data has 3"]),
    "no image size": (lambda w: w(data={"image_size": 0}), ["of 0 pixels", "1 to 4096"]),
    "weights changed": (_weights_changed, ["best.weights.h5 is not what run.json says"]),
    "weights gone": (_weights_gone, ["best.weights.h5 is not what run.json says"]),
    "trained on the validation images": (
        lambda w: w(data={"train_on_validation": True}),
        ["has trained on 10 of the 10 images that validate the student", "teacher.overlap=allow"],
    ),
    "trained on some of them": (lambda w: w(data={"validation_size": 4}), ["has trained on 6 of the 10 images"]),
    "taught by one who was": (
        lambda w: w(teachers=[{"run": "x", "weights_sha256": "0" * 64, "identity": None, "trained_on": [[8, None]]}]),
        ["has trained on 2 of the 10 images"],
    ),
    "no classes recorded": (lambda w: w(num_classes=None), ["run.json"]),
    "no files recorded": (lambda w: w(files=None), ["run.json"]),
}


@pytest.mark.parametrize("stage", ["distill", "pipeline"])
@pytest.mark.parametrize("case", BAD_TEACHERS)
def test_teacher_that_cannot_be_used_is_refused(command, tmp_path, write_run, on_npz, case, stage):
    make, expected = BAD_TEACHERS[case]
    run_dir = make(write_run)
    ended = command(*on_npz[0], f"stage={stage}", f"teacher.run={run_dir}")
    assert_refused(ended, str(run_dir), *expected)
    assert not (tmp_path / "outputs").exists()


def test_a_teacher_that_saw_validation_images_may_teach_if_that_is_allowed(command, write_run, on_npz):
    run_dir = write_run(data={"train_on_validation": True})
    ended = command(*on_npz[0], f"teacher.run={run_dir}", "teacher.overlap=allow")
    assert "import of tensorflow halted" in ended.err
    # what is trained on by the student itself is no validation
    ended = command(*on_npz[0], f"teacher.run={run_dir}", "student.train_on_validation=true")
    assert "import of tensorflow halted" in ended.err
    ended = command(*on_npz[0], "stage=pipeline", "teacher.train_on_validation=true")
    assert_refused(ended, "The configured teacher has trained on 10 of the 10 images")


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_run_that_cannot_be_evaluated_is_refused(command, tmp_path, write_run, case):
    make, expected = BAD_RECORDS[case]
    run_dir = make(write_run)
    assert_refused(command("stage=evaluate", f"run={run_dir}"), str(run_dir), *expected)
    assert not (tmp_path / "outputs").exists()


def test_a_directory_that_holds_a_run_is_not_written_again(command, tmp_path, write_run):
    run_dir = write_run()
    before = (run_dir / "run.json").read_bytes()
    ended = command(*STUDENT, f"hydra.run.dir={run_dir}", f"outputs={tmp_path}")
    assert_refused(ended, str(run_dir), "holds a run already")
    assert (run_dir / "run.json").read_bytes() == before


def test_run_whose_data_is_gone_is_not_evaluated(command, tmp_path, write_run):
    run_dir = write_run(data={"path": str(tmp_path / "gone.npz")})
    assert_refused(command("stage=evaluate", f"run={run_dir}"), "gone.npz does not exist")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "student.model.architecture=ResNet51",
            ["student.model.architecture must be one of ConvNeXtTiny,", "'ResNet51'"],
        ),
        ("student.model.weights=none.h5", ["model.weights=none.h5: there is no such file", ".weights.h5"]),
        (
            "student.model.weights=text.h5",
            ["model.weights=text.h5:", "a .h5 or .weights.h5 file that Keras has written"],
        ),
        ("data.normalise=dataset", ["data.normalise=dataset", "student.model=application", "student.normalise=none"]),
        ("student.normalise=dataset", ["student.normalise=dataset", "Set student.normalise=none"]),
        ("student.image_size=31", ["student.image_size=31 is too small for student.model=application"]),
    ],
)
def test_a_net_of_tf_keras_is_checked_before_anything_is_made(command, tmp_path, given, expected):
    (tmp_path / "text.h5").write_text("weights")
    ended = command("stage=student", "model@student.model=application", given)
    assert_refused(ended, *expected)
    assert os.listdir(tmp_path) == ["text.h5"]


def test_a_nets_keys_must_go_together(command):
    ended = command("stage=student", "model@student.model=resnet", "student.model.depth=10")
    assert_refused(ended, "depth=10 must be 6 n + 2", "Give 8")


def test_a_good_teacher_passes_the_checks(command, tmp_path, write_run, on_npz):
    """The control: without a fault in it, the hand-written record gets as far as loading TensorFlow."""
    ended = command(*on_npz[0], f"teacher.run={write_run()}")
    assert ended.code == 1
    assert "import of tensorflow halted" in ended.err
    assert not (tmp_path / "outputs").exists()  # it did not get as far as a record


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["stage=distill"], []),
        (
            ["stage=distill", "experiment=convnets", "temperature=4", "alpha=0.5", "seed=3"],
            ["experiment=convnets", "seed=3"],
        ),
        (
            ["experiment=convnets", "stage=distill", "student.model.filters=[2,4]", "distill.epochs=7", "epochs=2"],
            ["experiment=convnets", "epochs=2"],
        ),
        (
            ["stage=distill", "model@student.model=mlp", "model@teacher.model=convnet", "teacher.model.filters=[8,16]"],
            ["model@teacher.model=convnet", "teacher.model.filters=[8,16]"],
        ),
        (["stage=distill", "objective.kd.scale_by_temperature_squared=false", "optimizer=adam"], ["optimizer=adam"]),
        (["stage=distill", "outputs='my runs'", "data.train_size=500"], ["outputs='my runs'", "data.train_size=500"]),
        (["stage=distill", "++temperature=3", "++alpha=0.5", "++epochs=2"], ["++epochs=2"]),
        (["-m", "stage=distill", "temperature=2,5", "alpha=0.5,0.9", "epochs=2"], ["epochs=2"]),
    ],
)
def test_distilling_without_a_teacher_names_the_command_that_makes_one(command, tmp_path, given, kept):
    ended = command(*given)
    assert_refused(ended, "teacher.run=auto", "no completed teacher run", "teacher.run=RUN_DIRECTORY")
    assert os.listdir(tmp_path) == []
    recommended = re.search(r"Make one with: (kdrun .*?)\. Or", ended.err)[1]
    assert shlex.split(recommended) == ["kdrun", "stage=teacher", *kept]


def test_the_command_that_makes_a_teacher_makes_the_one_that_is_looked_for(command):
    given = ["stage=distill", "experiment=convnets", "temperature=4", "student.model.filters=[2,4]", "teacher.epochs=2"]
    recommended = shlex.split(re.search(r"(kdrun stage=teacher .*?)\. Or", command(*given).err)[1])[1:]
    found = []
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        for overrides in (given, recommended):
            composed = identities.composed(*overrides)
            found.append(identities.of(composed, "teacher", datasets.fingerprint(composed["data"])))
    assert found[0] == found[1]


def test_the_command_that_makes_a_teacher_keeps_the_config_folder(command, tmp_path):
    """Without it the user's own preset, which is kept, could not be found."""
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/my.yaml").write_text("# @package _global_\nepochs: 3\n")
    ended = command("--config-dir", "mine", "stage=distill", "experiment=my")
    assert_refused(ended, "kdrun ", "stage=teacher", "experiment=my", "--config-dir")


@pytest.mark.parametrize("record", [{}, {"stage": "teacher", "status": "completed", "config": {}}, []])
def test_records_of_something_else_are_passed_over_when_looking_for_a_teacher(command, tmp_path, on_npz, record):
    run_dir = tmp_path / "outputs/teacher/somebody_elses"
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text(json.dumps(record))
    (run_dir.parent / "another").mkdir()
    (run_dir.parent / "another/run.json").write_text(json.dumps(sealed(dict(record))))
    assert_refused(command(*on_npz[0]), "teacher.run=auto", "no completed teacher run")
    assert sorted(os.listdir(tmp_path / "outputs")) == ["teacher"]


# Help and completion


@pytest.fixture
def helped(command, tmp_path):
    ended = command("--help")
    assert (ended.code, ended.err) == (0, "")
    assert os.listdir(tmp_path) == []
    return ended.out


def _options(group: str) -> set[str]:
    return {path.stem for path in (config_dir() / group).glob("*.yaml")}


def _section(text: str, title: str) -> list[str]:
    """Its rows, without the lines on which one goes on."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(title)) + 1
    end = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].strip())
    return [line.strip() for line in lines[start:end] if re.match(r"  \S", line)]


def test_help_lists_every_stage_and_preset(helped):
    folders = {f"{path.name}/..." for path in (config_dir() / "experiment").iterdir() if path.is_dir()}
    assert {line.split()[0] for line in _section(helped, "Stages")} == _options("stage")
    assert {line.split()[0] for line in _section(helped, "Presets")} == _options("experiment") | folders


def test_help_fits_a_terminal_of_80_columns(helped):
    assert max(map(len, helped.splitlines())) <= 80


def test_help_states_the_defaults_of_the_config(helped):
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        choices = hydra.compose("config", return_hydra_config=True).hydra.runtime.choices
        values = dict(config.flatten(OmegaConf.to_container(hydra.compose("config"), resolve=True)))
    rows = [line.split()[:2] for line in _section(helped, "Most used keys")]
    assert len(rows) >= 15
    for key, stated in rows:
        value = choices[key] if key in choices else values[key]
        shown = "[none]" if value == {} else str(value).replace("None", "null")  # a list of choices, none of them
        assert stated == shown, key


def test_help_names_every_option_of_data_model_and_optimizer(helped):
    for group in ("data", "model", "optimizer"):
        assert not [name for name in _options(group) if not re.search(rf"\b{name}\b", helped)]


def test_help_has_six_examples_whose_keys_and_values_are_good(helped):
    examples = _section(helped, "Examples")
    assert len(examples) == 6
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        plain = OmegaConf.to_container(hydra.compose("config"), resolve=True)
        for example in examples:
            program, *words = shlex.split(example)
            assert program == "kdrun"
            # of a sweep, the first value
            words = [word if "[" in word else word.split(",")[0] for word in words if word != "-m"]
            composed = OmegaConf.to_container(hydra.compose("config", words), resolve=True)
            config.load(composed)
            assert composed != plain


def test_help_may_be_cut_off():
    command = f"{sys.executable} -m kdrun --help | head -1"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "") and ended.stdout.startswith("kdrun: train a teacher")


def test_cfg_job_prints_the_config(command, tmp_path):
    ended = command("--cfg", "job", "temperature=3")
    assert (ended.code, ended.err) == (0, "")
    assert "\nalpha: 0.9\n" in ended.out and "\ntemperature: 3\n" in ended.out
    assert os.listdir(tmp_path) == []


def test_cfg_job_of_an_unknown_key_is_refused(command, tmp_path):
    assert_refused(command("--cfg", "job", "alfa=1"), "alfa: there is no such key", "alpha")
    assert os.listdir(tmp_path) == []


def test_neither_help_nor_config_nor_a_refusal_loads_tensorflow(tmp_path):
    """In a fresh process: in this one other tests have loaded it, and --info prints through a log that pytest takes."""
    script = """
import sys
from kdrun.cli.main import main
asked = [["--info", "defaults", "optimizer=sgd"], ["--help"], ["--cfg", "job"], ["data.train_size=50001"]]
codes = [main(arguments) for arguments in asked]
heavy = {"tensorflow", "tf_keras", "keras", "tensorboard", "matplotlib"} & sys.modules.keys()
print(codes, sorted(heavy), file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.stderr.splitlines()[-1] == "[0, 0, 0, 2] []", ended.stderr
    assert "optimizer/sgd" in ended.stdout and "model/densenet_12" in ended.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("shell", "wanted"),
    [
        ("bash", "complete -o nospace -o default -F hydra_bash_completion kdrun"),
        ("zsh", "kdrun"),
        ("fish", "complete -c kdrun"),
    ],
)
def test_completion_is_installed_for(command, tmp_path, monkeypatch, shell, wanted):
    monkeypatch.setattr(sys, "argv", ["kdrun"])  # as the command is called
    ended = command("--shell-completion", f"install={shell}")
    assert (ended.code, ended.err) == (0, "")
    assert wanted in ended.out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("kdrun stage=", {f"stage={name}" for name in STAGES}),
        ("kdrun stage=teacher optimizer=ada", {"optimizer=adabelief", "optimizer=adam", "optimizer=adamw"}),
        ("kdrun teacher.r", {"teacher.run="}),
        ("kdrun temp", {"temperature=", "temperature_end="}),
    ],
)
def test_completion_offers(command, tmp_path, monkeypatch, shell, line, wanted):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    ended = command("--shell-completion", f"query={shell}")
    assert (ended.code, ended.err) == (0, "")
    assert set(ended.out.split()) == wanted
    assert os.listdir(tmp_path) == []


def test_a_cache_folder_is_listed_without_tensorflow(command):
    """Whatever its data: nobody looks at them."""
    ended = command("stage=cache", "cache.clear=true", "data=npz", "data.path=nowhere.npz")
    assert ended.code == 0, ended.err
    assert "nothing of kdrun's is in outputs/.cache/teachers" in ended.out


@pytest.mark.parametrize("given", ["stage=5", "optimizer=true", "objective=[kd,3]", "model@student.model=1.5"])
def test_a_choice_that_is_no_name_is_refused(command, tmp_path, given):
    assert_refused(command(given), given.partition("=")[0].partition("@")[0], "Allowed: ")
    assert os.listdir(tmp_path) == []
