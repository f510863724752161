"""Data sets of TensorFlow Datasets: what it has prepared is the same data set as the folder of the same pictures."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pictures
import pytest
from pictures import CLASSES, NONE, forget

from kdrun.data import datasets

pytest.importorskip("tensorflow_datasets")
pytestmark = pytest.mark.usefixtures("in_time")

KEYS = {"channels": "auto", "resize": "stretch", "decode_size": 32, "skip_broken": False, "split": "stratified"}
KEYS |= {"validation_size": 20, "split_seed": 3, **NONE}
OF_TFDS = {"name": "tfds", "dataset": "digits", "download": False, "image_column": None, "label_column": None}
# what TFDS knows as `digits` in the processes that are started with it: pictures of a folder, a few without labels, and
# a split that is none of ours
BUILDER = """
import sys
if any("kdrun.data.tfds" in word for word in sys.orig_argv):
    from pathlib import Path
    import tensorflow_datasets as tfds

    class Digits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            names = sorted(path.name for path in Path({folder!r}, "train").iterdir())
            features = {{"id": tfds.features.Text(), "label": tfds.features.ClassLabel(names=names)}}
            features["image"] = tfds.features.Image(shape=(None, None, 3))
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {{split: self._generate_examples(split) for split in ("train", "test", "unsupervised")}}

        def _generate_examples(self, split):
            paths = sorted(Path({folder!r}, "test" if split == "unsupervised" else split).glob("*/*.png"))
            for path in paths:
                yield str(path), {{"image": path, "label": path.parent.name, "id": path.name}}
            for path in paths[:3]:
                yield f"{{path}} again", {{"image": path, "label": -1, "id": path.name}}
"""


@pytest.fixture(scope="module")
def held():
    return pictures.arrays()


@pytest.fixture(scope="module")
def prepared(held, tmp_path_factory):
    """A folder with the pictures in `folder`, and what TFDS has made of them in `data`, read into `store`."""
    top = tmp_path_factory.mktemp("tfds")
    pictures.write_folder(top / "folder", held)
    with pytest.MonkeyPatch.context() as patch:
        start_with(patch, top / "site", BUILDER.format(folder=str(top / "folder")))
        load(top, download=True)
    return top


def start_with(patch: pytest.MonkeyPatch, site: Path, text: str) -> None:
    """Every Python that is started now does this first."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(text)
    patch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def load(top: Path, **changes) -> datasets.Dataset:
    forget()
    return datasets.load({**KEYS, **OF_TFDS, "path": str(top / "data"), "store": str(top / "store"), **changes})


@pytest.fixture
def copied(prepared, tmp_path):
    """TFDS' folder of its own, of which nothing was read."""
    shutil.copytree(prepared / "data", tmp_path / "data")
    return tmp_path / "data/digits/1.0.0"


def test_what_tfds_has_prepared_is_the_same_data_set_as_the_folder(prepared, monkeypatch):
    folder = {**KEYS, "name": "folder", "path": str(prepared / "folder"), "store": str(prepared / "store")}
    expected = datasets.load(folder)
    # whatever reads it now would die at once: it was read before
    start_with(monkeypatch, prepared / "dies", "import os, sys\nif '-c' in sys.orig_argv: os.abort()")
    found = load(prepared)
    assert found.sha256 == expected.sha256 and found.class_names == CLASSES
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert np.asarray(ours.images).tobytes() == np.asarray(theirs.images).tobytes()
        assert ours.labels.tobytes() == theirs.labels.tobytes()
    left_out = datasets.whole({**KEYS, **OF_TFDS, "path": str(prepared / "data"), "store": str(prepared / "store")})
    assert left_out.left_out == {"without a label": 6, "in the split unsupervised": 43}


def refused(ended, *said: str) -> None:
    assert ended.code == 2 and ended.err.count("\n") == 1 and not ended.err.startswith("Traceback"), ended.err
    assert all(each in ended.err for each in said), ended.err
    left = [path for path in Path().rglob("*") if path.is_file() and "data" not in path.parts]
    assert all(path.suffix == ".lock" for path in left) and not list(Path().rglob("*.partial"))


def look(command: Callable, *words: str):
    forget()
    return command("stage=data", "data=tfds", "data.path=data", "data.dataset=digits", "data.image_size=32", *words)


def test_what_is_not_there_is_said_in_one_line(command, monkeypatch):
    refused(look(command), "data holds no digits, prepared by TFDS", "data.download=true")
    refused(look(command, "data.dataset=../digits"), "data.dataset must be NAME or NAME/CONFIG", "got '../digits'")
    for version in ("small/1.0.0", "small/1.0.1", "incomplete.ABC_1.0.2"):
        Path("data/digits", version).mkdir(parents=True)
        Path("data/digits", version, "dataset_info.json").write_text("{}")
    refused(look(command), "data holds digits/small:1.0.0, digits/small:1.0.1. Give one of them.")
    refused(look(command, "data.dataset=digits/small:1.0.2"), "data holds no digits/small:1.0.2")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refused(look(command), "needs tensorflow-datasets", "pip install 'kdrun[tfds]'")


def test_a_reading_process_that_dies_leaves_one_line(command, copied, monkeypatch, tmp_path):
    start_with(monkeypatch, tmp_path / "data/dies", "import os, sys\nif '-c' in sys.orig_argv: os.abort()")
    refused(look(command), "the process of TFDS for data/digits/1.0.0 was ended by SIGABRT")


def test_a_feature_that_is_not_of_tfds_is_not_imported(command, copied):
    features = copied / "features.json"
    features.write_text(features.read_text().replace("tensorflow_datasets.core.features.text_feature", "my.module"))
    refused(look(command), "features.json names my.module.Text")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SHARD = "digits-{}.tfrecord-00000-of-00001"
FAULTS = {
    "no such column": (None, ["data.image_column=photo"], "columns id, image, label. Say which with data.image_column"),
    "no picture": (None, ["data.image_column=id"], "data.image_column=id: data/digits/1.0.0 has Text"),
    "a damaged record": (lambda folder: flip(folder / SHARD.format("train")), [], "(DataLossError: corrupted record"),
    "a file is gone": (
        lambda folder: (folder / SHARD.format("test")).unlink(),
        [],
        "(NotFoundError: data/digits/",
    ),
    "not known": (shutil.rmtree, ["data.download=true", "data.dataset=digit5"], "Dataset digit5 not found"),
}
SLOW = {name: [pytest.mark.slow] * (name != "no such column") for name in FAULTS}


@pytest.mark.parametrize(
    ("damage", "words", "said"), [pytest.param(*fault, id=name, marks=SLOW[name]) for name, fault in FAULTS.items()]
)
def test_what_tfds_cannot_read_is_said_in_one_line(command, copied, damage, words, said):
    if damage:
        damage(copied)
    refused(look(command, *words), said)


@pytest.mark.slow
def test_a_signal_ends_the_reading_process(copied, tmp_path, monkeypatch):
    goes_on = "import sys, time\nif '-c' in sys.orig_argv: time.sleep(60); open('went on', 'w')"
    start_with(monkeypatch, tmp_path / "site", goes_on)
    command = [sys.executable, "-m", "kdrun", "stage=data", "data=tfds", "data.path=data", "data.dataset=digits"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **streams) as started:
        assert started.stdout.readline().startswith("data: reading data/digits/1.0.0")
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        while not (child := children.read_text().split()):
            pass
        started.send_signal(signal.SIGINT)
        _, said = started.communicate()
    assert started.returncode == 130 and said == "kdrun: Stopped by SIGINT.\n"
    assert not (tmp_path / "went on").exists() and not Path("/proc", *child).exists()
    assert not list(tmp_path.rglob("*.partial"))
