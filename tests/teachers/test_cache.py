"""The teacher's logits on disk: keys, contents, damage, full disks, killed and waiting processes, the same bits."""

import copy
import hashlib
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import reference
from filelock import FileLock

from kdrun.cli.main import main
from kdrun.errors import KdrunError, Stopped
from kdrun.storage.manifest import sealed
from kdrun.teachers import cache

# What is kept: obtain, with plain functions instead of a teacher

DEPENDS = {"weights_sha256": "a" * 64, "model": {"name": "mlp", "hidden_units": [8]}, "inference_batch_size": 4}
SHAPES = {"train": (2, 70, 10), "validation": (23, 10), "test": (9, 10)}
LOGITS = {split: np.random.default_rng(7).normal(size=shape).astype(np.float32) for split, shape in SHAPES.items()}


def ask(split):
    """Answers in blocks of four images, the last one of what is left."""
    rows = LOGITS[split].reshape(-1, 10)
    return (rows[start : start + 4] for start in range(0, len(rows), 4))


def nobody(split):
    raise AssertionError(f"the teacher was asked for {split}")


def bits(logits) -> dict[str, bytes]:
    return {split: array.tobytes() for split, array in logits.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    """What a cache folder holds, locks aside."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def filled(folder: Path, depends=DEPENDS) -> Path:
    """A new entry."""
    cache.obtain(folder, depends, SHAPES, ask)
    return folder / cache.key(depends)[:32]


@pytest.fixture
def said(caplog, monkeypatch):
    """kdrun's log, whether or not a command was run in this process before."""
    monkeypatch.setattr(logging.getLogger("kdrun"), "propagate", True)
    caplog.set_level(logging.INFO, logger="kdrun")
    return caplog


def test_what_the_teacher_said_is_read_again_without_asking_and_without_writing(tmp_path, said):
    first = cache.obtain(tmp_path, DEPENDS, SHAPES, ask)
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    asking, ended = said.messages
    assert str(entry) in asking and "6.9 kB" in asking  # 4 bytes of 10 * (140 + 23 + 9) logits are 6880
    assert re.search(rf"filled {entry} in \d+\.\d s$", ended)
    times = {path: path.stat().st_mtime_ns for path in [entry, *entry.iterdir()]}
    said.clear()
    again = cache.obtain(tmp_path, DEPENDS, SHAPES, nobody)
    assert bits(first) == bits(again) == bits(LOGITS)
    assert len(said.messages) == 1 and str(entry) in said.text and "6.9 kB" in said.text
    assert {path: path.stat().st_mtime_ns for path in [entry, *entry.iterdir()]} == times
    for split, array in again.items():
        assert (array.shape, array.dtype) == (SHAPES[split], np.float32)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_other_logits_are_another_entry_and_equal_plain_values_the_same(tmp_path):
    others = [{"weights_sha256": "b" * 64}, {"model": {"name": "mlp", "hidden_units": [9]}}, {"new": None}]
    entries = {filled(tmp_path, DEPENDS | other) for other in [{}, *others]}
    assert len(entries) == 4
    reordered = dict(reversed(DEPENDS.items())) | {"model": {"hidden_units": [8], "name": "mlp"}}
    assert bits(cache.obtain(tmp_path, reordered, SHAPES, nobody)) == bits(LOGITS)


# Damage


def assert_set_aside_and_right_again(folder: Path, entry: Path, said, aside: str = "damaged") -> str:
    """The entry as it is now is reported, kept under another name, and computed anew; returns the report."""
    damaged = contents(entry)
    said.clear()
    assert bits(cache.obtain(folder, DEPENDS, SHAPES, ask)) == bits(LOGITS)
    (report,) = [record.getMessage() for record in said.records if record.levelno == logging.WARNING]
    assert str(entry) in report and str(folder / f"{entry.name}.{aside}") in report
    assert contents(folder / f"{entry.name}.{aside}") == damaged
    assert bits(cache.obtain(folder, DEPENDS, SHAPES, nobody)) == bits(LOGITS)
    return report


def test_a_flipped_bit_anywhere_is_noticed(tmp_path, said):
    random = np.random.default_rng(0)
    for file in ["train.npy", "validation.npy", "test.npy", "manifest.json"] * 30:
        path = filled(tmp_path) / file
        held = bytearray(path.read_bytes())
        held[random.integers(len(held))] ^= 1 << random.integers(8)
        path.write_bytes(held)
        assert_set_aside_and_right_again(tmp_path, path.parent, said)
        shutil.rmtree(tmp_path / f"{path.parent.name}.damaged")


def resealed(entry: Path) -> None:
    """Have the manifest agree with the files as they are now, as if they had been written like this."""
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in entry.glob("*.npy")}
    (entry / "manifest.json").write_text(json.dumps(sealed(manifest)))


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def of_objects(file):
    np.save(file, np.array([Trap(file.parents[1] / "sprung")], object), allow_pickle=True)


def of_another_entry(file):
    other = filled(file.parents[1] / "elsewhere", DEPENDS | {"weights_sha256": "b" * 64})
    shutil.rmtree(file.parent)
    shutil.copytree(other, file.parent)


DAMAGE = {
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "two bytes short": lambda file: file.write_bytes(file.read_bytes()[:-2]),  # the manifest ends with a line's end
    "one byte long": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "emptied": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}
NPY_DAMAGE = {
    "objects": of_objects,
    "float64": lambda file: np.save(file, LOGITS[file.stem].astype(np.float64)),
    "another shape": lambda file: np.save(file, LOGITS[file.stem][:1]),
    "another entry's": of_another_entry,
}
MANIFESTS = ["", "[]", "{}", "null", "{", '"text"', '{"sealed_sha256": 1}', "[" * 100_000]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param(file, damage, id=f"{file} {name}")
        for file in ("train.npy", "validation.npy", "test.npy", "manifest.json")
        for name, damage in (DAMAGE if file == "manifest.json" else DAMAGE | NPY_DAMAGE).items()
    ],
)
def test_a_damaged_entry_is_reported_set_aside_and_computed_again(tmp_path, said, file, damage):
    entry = filled(tmp_path)
    damage(entry / file)
    assert_set_aside_and_right_again(tmp_path, entry, said)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda text: text[:20])
def test_a_manifest_of_something_else_is_damage_too(tmp_path, said, manifest):
    entry = filled(tmp_path)
    (entry / "manifest.json").write_text(manifest)
    assert_set_aside_and_right_again(tmp_path, entry, said)


@pytest.mark.parametrize("damage", ["objects", "float64", "another shape"])
def test_arrays_of_another_kind_are_refused_even_if_the_manifest_vouches_for_them(tmp_path, said, damage):
    entry = filled(tmp_path)
    resealed(entry)
    cache.obtain(tmp_path, DEPENDS, SHAPES, nobody)  # sealing as such breaks nothing
    NPY_DAMAGE[damage](entry / "train.npy")
    resealed(entry)
    assert_set_aside_and_right_again(tmp_path, entry, said)
    assert not (tmp_path / "sprung").exists()


def test_every_damaged_entry_is_kept_beside_the_ones_before(tmp_path, said):
    entry = filled(tmp_path)
    for number, aside in enumerate(["damaged", "damaged-2", "damaged-3"]):
        (entry / "test.npy").write_bytes(bytes([number]))
        assert_set_aside_and_right_again(tmp_path, entry, said, aside)
    assert [contents(path)["test.npy"] for path in sorted(tmp_path.glob("*.damaged*"))] == [b"\0", b"\1", b"\2"]


def test_a_file_in_an_entrys_place_is_set_aside(tmp_path, said):
    entry = tmp_path / cache.key(DEPENDS)[:32]
    entry.write_text("mine")
    assert bits(cache.obtain(tmp_path, DEPENDS, SHAPES, ask)) == bits(LOGITS)
    assert (tmp_path / f"{entry.name}.damaged").read_text() == "mine"


# Logits that cannot be kept


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split", SHAPES)
def test_logits_that_are_not_finite_are_refused_and_nothing_is_kept(tmp_path, bad, split):
    def spoilt(asked):
        yield from ask(asked)
        if asked == split:
            yield np.array([[0.0] * 9 + [bad]], np.float32)

    with pytest.raises(KdrunError, match="not all finite"):
        cache.obtain(tmp_path, DEPENDS, SHAPES, spoilt)
    assert names(tmp_path) == []
    assert bits(cache.obtain(tmp_path, DEPENDS, SHAPES, ask)) == bits(LOGITS)


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM, "stopped"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_teacher_that_is_interrupted_leaves_no_half_entry(tmp_path, error):
    def interrupted(split):
        yield next(ask(split))
        raise error

    with pytest.raises(type(error)):
        cache.obtain(tmp_path, DEPENDS, SHAPES, interrupted)
    assert names(tmp_path) == []


@pytest.mark.parametrize("rows", [13, 15])
def test_a_teacher_that_gives_another_number_of_logits_is_refused(tmp_path, rows):
    with pytest.raises(Exception):  # noqa: B017 - a mistake in our own code: how it is said does not matter
        cache.obtain(tmp_path, DEPENDS, {"test": (14, 10)}, lambda split: iter([np.ones((rows, 10), np.float32)]))
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """Mount a small file system of its own, with mount options."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True)


# pages of 4 kB: train takes two, validation, test and manifest one each; inodes: the root, the lock, the folder, files
FULL = ["size=4k", "size=8k", "size=12k", "size=16k", *(f"nr_inodes={n}" for n in range(1, 7))]


@pytest.mark.parametrize("options", FULL)
def test_a_full_disk_raises_and_leaves_no_half_entry(small_disk, options):
    folder = small_disk(options)
    with pytest.raises(OSError, match="No space left"):
        cache.obtain(folder, DEPENDS, SHAPES, ask)
    assert names(folder) == []
    subprocess.run(["mount", "-o", "remount,size=1m,nr_inodes=100", folder], check=True)
    assert bits(cache.obtain(folder, DEPENDS, SHAPES, ask)) == bits(LOGITS)


def test_a_full_disk_shows_before_the_teacher_is_asked_in_vain(small_disk):
    with pytest.raises(OSError, match="No space left"):
        cache.obtain(small_disk("size=4k"), DEPENDS, SHAPES, lambda split: (nobody(split) for _ in range(1)))


def test_an_entry_is_read_where_nothing_can_be_written(small_disk):
    folder = small_disk("size=1m")
    filled(folder)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    assert bits(cache.obtain(folder, DEPENDS, SHAPES, nobody)) == bits(LOGITS)
    with pytest.raises(OSError, match="Read-only"):
        cache.obtain(folder, DEPENDS | {"new": 1}, SHAPES, ask)


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from kdrun.teachers import cache

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
shapes = {"train": (1, 10, 10), "test": (50, 10)}
try:
    cache.obtain(folder, {}, shapes, lambda split: iter([np.ones(shapes[split], np.float32).reshape(-1, 10)]))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("limit", [0, 300, 1000])  # the first file, or only the second, is too large
def test_a_limit_on_file_sizes_raises_and_leaves_no_half_entry(tmp_path, limit):
    ended = subprocess.run([sys.executable, "-c", LIMITED, tmp_path, str(limit)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "File too large\n"), ended.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("below", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_raises(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError):
        cache.obtain(tmp_path / below, DEPENDS, SHAPES, ask)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Several processes

FILLER = """
import logging, sys, time
from pathlib import Path
import numpy as np
from kdrun.teachers import cache
from kdrun.runtime import signals as stopping

logging.basicConfig(level="INFO", format="%(message)s")
folder, name = Path(sys.argv[1]), sys.argv[2]

def ask(split):
    yield np.full((2, 3), ord(name), np.float32)
    (folder / f"{name} is asked").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    yield np.full((2, 3), ord(name), np.float32)

with stopping.on_signals():
    print(cache.obtain(folder / "cache", {}, {"train": (1, 4, 3)}, ask)["train"].tobytes().hex())
"""


@pytest.fixture
def fill(tmp_path):
    """Start a process that wants an entry, and stops in the middle of asking until there is a file "go"."""
    started = []

    def start(name: str) -> subprocess.Popen:
        with (tmp_path / f"{name} said").open("w") as said:
            arguments = [sys.executable, "-c", FILLER, tmp_path, name]
            started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=said, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(happened, process):
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_asks_and_the_other_waits_for_it(tmp_path, fill):
    first = fill("a")
    wait_until((tmp_path / "a is asked").exists, first)
    second, third = fill("b"), fill("c")
    for name, process in (("b", second), ("c", third)):
        wait_until(lambda name=name: "waiting for it" in (tmp_path / f"{name} said").read_text(), process)
    third.terminate()
    assert third.wait(timeout=10) != 0
    assert "Stopped by SIGTERM" in (tmp_path / "c said").read_text()
    time.sleep(0.5)  # the second goes on waiting, and says so no second time
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outputs == [np.full((4, 3), ord("a"), np.float32).tobytes().hex() + "\n"] * 2
    assert (tmp_path / "b said").read_text().count("waiting for it") == 1
    assert not (tmp_path / "b is asked").exists()


def test_what_a_killed_process_leaves_is_not_taken_for_an_entry_and_is_cleaned_up(tmp_path, fill):
    killed = fill("a")
    wait_until((tmp_path / "a is asked").exists, killed)
    killed.kill()
    killed.wait()
    entry = cache.key({})[:32]
    assert names(tmp_path / "cache") == [f"{entry}.partial"]
    logits = cache.obtain(tmp_path / "cache", {}, {"train": (1, 4, 3)}, lambda split: iter(np.ones((2, 2, 3), "f4")))
    assert (logits["train"] == 1).all()
    assert names(tmp_path / "cache") == [entry]


# Through the command line: a small teacher and MNIST cut small

SIZES = {"train": 320, "validation": 200, "test": 200}
SMALL = ["experiment=convnets", "teacher.model.filters=[4,8]", "student.model.filters=[2]", "teacher.epochs=1"]
SMALL += [*(f"data.{split}_size={size}" for split, size in SIZES.items()), "batch_size=64"]
SMALL += ["tensorboard.histograms=false"]


def record_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def weights_of(run_dir: Path, name: str) -> list[np.ndarray]:
    import h5py

    arrays = []
    with h5py.File(run_dir / "checkpoints" / f"{name}.weights.h5") as file:
        file.visititems(lambda _, item: arrays.append(item[()]) if hasattr(item, "dtype") else None)
    assert arrays
    return arrays


def results_of(run_dir: Path) -> dict[str, bytes | list[bytes]]:
    """What two runs that are the same have in common, bit by bit."""
    files = {name: (run_dir / name).read_bytes() for name in ("predictions/test.npz", "metrics.jsonl")}
    return files | {name: [array.tobytes() for array in weights_of(run_dir, name)] for name in ("best", "last")}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A finished pipeline's folder, and what it printed."""
    place = tmp_path_factory.mktemp("pipeline")
    with (place / "said").open("w+") as said, redirect_stdout(said):
        assert main([*SMALL, "epochs=2", f"outputs={place / 'outputs'}", f"hydra.run.dir={place / 'outputs/run'}"]) == 0
    return place, (place / "said").read_text()


@pytest.fixture(scope="module")
def teacher(pipeline) -> Path:
    (run_dir,) = (pipeline[0] / "outputs/teacher").iterdir()
    return run_dir


def run(outputs: Path, teacher: Path, name: str, *arguments) -> Path:
    """Run a stage with a finished teacher; the run directory."""
    from kdrun.training import network

    network.release()  # as in a process of its own, which has trained nothing before
    given = [*SMALL, f"teacher.run={teacher}", f"outputs={outputs}", f"hydra.run.dir={outputs / name}"]
    assert main([*given, *arguments]) == 0
    return outputs / name


def entries(outputs: Path) -> list[Path]:
    folder = outputs / ".cache/teachers"
    return [folder / name for name in names(folder)]


@pytest.fixture(scope="module")
def given(pipeline) -> dict:
    """A config, as stages are given it."""
    return record_of(pipeline[0] / "outputs/run")["config"]


def key_of(config: dict, run_dir: Path, changes: dict | None = None) -> str:
    """The key of the logits with some values of the config changed."""
    from kdrun.data import datasets
    from kdrun.teachers import outputs

    config = copy.deepcopy(config)
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        branch = config
        for part in path:
            branch = branch[part]
        assert last in branch and branch[last] != value
        branch[last] = value
    return cache.key(outputs.cache_key(config, run_dir, datasets.load(config["data"])))


OTHER_LOGITS = {
    "data.train_size": 319,
    "data.validation_size": 199,
    "data.test_size": 199,
    "data.augment.jitter": 1,
    "data.augment.flip": True,
    "precision": "mixed_bfloat16",
    "teacher.inference_batch_size": 127,
}
SAME_LOGITS = {
    "data.image_size": 29,  # the student's, as it is given here; the teacher's run has its own
    "temperature": 9.0,
    "alpha": 0.1,
    "seed": 7,
    "student.model.filters": [3],
    "distill.epochs": 3,
    "distill.batch_size": 32,
    "student.epochs": 3,
    "optimizer.learning_rate": 0.1,
    "objective.kd.scale_by_temperature_squared": False,
    "evaluation_batch_size": 100,
    "outputs": "elsewhere",
    "cache_dir": "elsewhere",
    "reuse": False,
    "precision": "float32",  # what auto is without a GPU
    "teacher.run": "elsewhere",
    "teacher.seed": 7,
    "teacher.epochs": 7,
    "teacher.cache": "on",
}


def test_whatever_changes_logits_changes_the_key_and_nothing_else_does(given, teacher):
    same = key_of(given, teacher)
    others = [key_of(given, teacher, {key: value}) for key, value in OTHER_LOGITS.items()]
    assert len({same, *others}) == 1 + len(OTHER_LOGITS)
    for key, value in SAME_LOGITS.items():
        assert key_of(given, teacher, {key: value}) == same, key


def test_the_key_depends_on_every_pixel_of_the_dataset_but_not_on_its_path(given, teacher, tmp_path):
    from kdrun.data import datasets

    with np.load(Path(datasets.__file__).with_name("mnist.npz")) as mnist:
        arrays = {name: mnist[name][:1000] for name in mnist.files}
    np.savez(tmp_path / "one.npz", **arrays)
    shutil.copy(tmp_path / "one.npz", tmp_path / "copy.npz")
    arrays["x_test"][-1, 14, 14] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    one, copied, other = (
        key_of({**given, "data": {**given["data"], "name": "npz", "path": str(tmp_path / name)}}, teacher)
        for name in ("one.npz", "copy.npz", "other.npz")
    )
    assert one == copied != other


def test_the_key_depends_on_tensorflow_and_on_the_format(given, teacher, monkeypatch):
    from kdrun.teachers import outputs

    keys = [key_of(given, teacher)]
    monkeypatch.setattr(outputs, "version", lambda package: "2.21.99" if package == "tensorflow" else "0")
    keys.append(key_of(given, teacher))
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    keys.append(key_of(given, teacher))
    assert len(set(keys)) == 3


def another_teacher(teacher: Path, place: Path, value: float) -> Path:
    """A copy of a run with one weight changed by a little, or to `value`."""
    import h5py

    shutil.copytree(teacher, place)
    weights, record = place / "checkpoints/best.weights.h5", record_of(place)
    with h5py.File(weights, "r+") as file:
        arrays = []
        file.visititems(lambda _, item: arrays.append(item) if hasattr(item, "dtype") and item.ndim == 2 else None)
        arrays[-1][0, 0] = value
    record["files"]["checkpoints/best.weights.h5"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (place / "run.json").write_text(json.dumps(sealed(record)))
    return place


def test_the_key_depends_on_every_weight_and_on_the_model(given, teacher, tmp_path):
    keys = [key_of(given, teacher), key_of(given, another_teacher(teacher, tmp_path / "weight", 1e-3))]
    eleven = {"num_classes": 11, "class_names": [str(number) for number in range(11)], "results": {}}
    for number, change in enumerate(({"model": {"name": "convnet", "filters": [8, 4]}}, eleven)):
        shutil.copytree(teacher, tmp_path / str(number))
        (tmp_path / str(number) / "run.json").write_text(json.dumps(sealed(record_of(teacher) | change)))
        keys.append(key_of(given, tmp_path / str(number)))
    shutil.copytree(teacher, tmp_path / "copy")
    assert key_of(given, tmp_path / "copy") == keys[0]
    assert len(set(keys)) == 4


def mnist(split: str, count: int) -> np.ndarray:
    from kdrun.data import datasets

    with np.load(Path(datasets.__file__).with_name("mnist.npz")) as arrays:
        images = {"train": arrays["x_train"][200:], "validation": arrays["x_train"], "test": arrays["x_test"]}[split]
    return images[:count].astype(np.float32) / 255


def network_of(run_dir: Path):
    """The network of a run: images [n, height, width] in [0, 1] -> logits."""
    from kdrun.teachers import checkpoint

    model = checkpoint.load(run_dir, "float32")
    return lambda images: model(images[..., np.newaxis], training=False).numpy()


def assert_holds(entry: Path, expected: dict[str, np.ndarray]) -> None:
    for split, logits in expected.items():
        held = np.load(entry / f"{split}.npy", allow_pickle=False)
        assert held.dtype == np.dtype("<f4")
        assert held.shape == logits.shape
        np.testing.assert_allclose(held, logits, rtol=0, atol=1e-5)
        assert np.ptp(held, axis=-2).min() > 0.1  # images do differ by more than that


def test_an_entry_holds_the_teachers_logits_in_the_datasets_order(pipeline, teacher):
    """Neither 320 nor 200 images are whole batches of 128."""
    (entry,) = entries(pipeline[0] / "outputs")
    logits = {split: network_of(teacher)(mnist(split, n)) for split, n in SIZES.items()}
    assert_holds(entry, logits | {"train": logits["train"][np.newaxis]})


def test_an_entry_holds_every_view_of_the_training_images(tmp_path):
    """Shifts row by row, mirrored ones after them; at 14 pixels a side, bilinearly: each the mean of four pixels."""
    smaller = ["data.image_size=14", "data.augment.jitter=1", "data.augment.flip=true"]
    assert main([*SMALL, *smaller, "stage=teacher", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'small'}"]) == 0
    run(tmp_path, tmp_path / "small", "run", "stage=cache", *smaller)
    padded = np.pad(mnist("train", 320), [(0, 0), (1, 1), (1, 1)])
    shifted = [padded[:, row : row + 28, column : column + 28] for row in range(3) for column in range(3)]
    views = [*shifted, *(images[:, :, ::-1] for images in shifted)]

    network = network_of(tmp_path / "small")

    def logits(images):
        return network(images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)))

    expected = {split: logits(mnist(split, 200)) for split in ("validation", "test")}
    (entry,) = entries(tmp_path)
    assert_holds(entry, expected | {"train": np.stack([logits(images) for images in views])})


def test_stage_cache_fills_once_and_distilling_finds_it(teacher, tmp_path, capsys):
    first = run(tmp_path, teacher, "first", "stage=cache")
    (entry,) = entries(tmp_path)
    said = capsys.readouterr().out
    assert f"asking the teacher, 28.8 kB into {entry}\n" in said  # 4 bytes of 10 * (320 + 200 + 200) logits
    assert re.search(rf"filled {entry} in \d+\.\d s\n", said)
    shapes = {"train": [1, 320, 10], "validation": [200, 10], "test": [200, 10]}
    assert record_of(first)["results"]["shapes"] == shapes
    times = {path: path.stat().st_mtime_ns for path in [entry, *entry.iterdir()]}
    run(tmp_path, teacher, "again", "stage=cache")
    others = ["temperature=9", "alpha=0.1", "seed=7", "student.model.filters=[3]", "batch_size=32"]
    run(tmp_path, teacher, "distilled", "stage=distill", "distill.epochs=1", *others)
    said = capsys.readouterr().out
    assert said.count(f"the teacher's logits are in {entry} (28.8 kB)") == 2
    assert "asking" not in said and "beside" not in said
    assert {path: path.stat().st_mtime_ns for path in [entry, *entry.iterdir()]} == times


def test_a_weight_or_an_image_more_or_less_makes_another_entry(teacher, tmp_path):
    changed = another_teacher(teacher, tmp_path / "changed", 1e-3)
    for number, arguments in enumerate(([], ["data.train_size=319"], [f"teacher.run={changed}"], [])):
        run(tmp_path, teacher, str(number), "stage=cache", *arguments)
    found = [np.load(entry / "train.npy") for entry in entries(tmp_path)]
    assert sorted(array.shape[1] for array in found) == [319, 320, 320]
    one, other = (array for array in found if array.shape[1] == 320)
    assert 0 < np.abs(one - other).max() < 1


def test_a_teacher_whose_logits_are_not_finite_is_refused_in_one_line(teacher, tmp_path, capsys):
    spoilt = another_teacher(teacher, tmp_path / "spoilt", np.inf)
    assert main([*SMALL, "stage=cache", f"teacher.run={spoilt}", f"outputs={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "not all finite" in said and said.count("\n") == 1
    assert names(tmp_path / ".cache/teachers") == []


# Exactly the same student

FIFTY_STEPS = ["stage=distill", "distill.epochs=10", "teacher.inference_batch_size=64"]


@pytest.fixture(scope="module")
def live(teacher, tmp_path_factory) -> Path:
    """A student whose teacher ran beside it."""
    return run(tmp_path_factory.mktemp("live"), teacher, "live", *FIFTY_STEPS, "teacher.cache=false")


def assert_same_student(one: Path, other: Path) -> None:
    records = [record_of(run_dir)["results"] for run_dir in (one, other)]
    assert [record["steps"] for record in records] == [50, 50]
    for split in ("validation", "test"):
        assert records[0][split] == records[1][split]
        assert 0 < records[0][split]["best"]["teacher_agreement"] < 1 and records[0][split]["best"]["teacher_kl"] > 0
    assert results_of(one) == results_of(other)


def assert_close_students(one: Path, other: Path) -> None:
    """Equal but for rounding: after fifty steps, an answer to another image or view shows far above that."""
    for here, there in zip(weights_of(one, "last"), weights_of(other, "last"), strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)


def answers_alike_wherever(teacher: Path) -> bool:
    """Whether the processor gives an image the same bits wherever in its batch of 64 it stands, of this teacher: an AMD
    EPYC does of few."""
    import tensorflow as tf

    network, images = reference.network(teacher, "best"), reference.split("train", **SIZES)[0]
    answer = tf.function(lambda batch: network(batch, training=False), input_signature=[tf.TensorSpec([64, 28, 28, 1])])
    random, in_order = np.random.default_rng(0), np.concatenate([answer(part) for part in np.split(images, 5)])
    for _ in range(20):
        order = random.permutation(320)
        found = np.concatenate([answer(part) for part in np.split(images[order], 5)])
        if found.tobytes() != in_order[order].tobytes():
            return False
    return True


def test_a_student_of_kept_logits_is_that_of_a_live_teacher(teacher, live, tmp_path, capsys):
    assert record_of(live)["config"]["teacher"]["cache"] == "off"
    assert "runs beside the student: teacher.cache=off" in (live / "kdrun.log").read_text()
    assert not (live.parent / ".cache").exists()
    kept = run(tmp_path, teacher, "kept", *FIFTY_STEPS, "teacher.cache=on")
    said = capsys.readouterr().out
    assert "teacher cache: filled" in said and "beside" not in said
    assert_close_students(kept, live)
    if answers_alike_wherever(teacher):
        assert_same_student(kept, live)

    # agreement and divergence are those with the logits that are kept
    (entry,) = entries(tmp_path)
    with np.load(kept / "predictions/test.npz") as saved:
        z, v = saved["logits"].astype(np.float64), np.load(entry / "test.npy").astype(np.float64)
    log_q, log_p = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (z, v))
    recorded = record_of(kept)["results"]["test"]["best"]
    assert recorded["teacher_agreement"] == (z.argmax(axis=1) == v.argmax(axis=1)).mean()
    assert recorded["teacher_kl"] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean(), rel=1e-9)


@pytest.mark.slow
def test_a_student_shown_augmented_images_is_the_same_too_and_auto_keeps_nothing_for_it(teacher, tmp_path, capsys):
    augmented = [*FIFTY_STEPS, "data.augment.jitter=2", "data.augment.flip=true"]
    auto = run(tmp_path, teacher, "auto", *augmented)
    said = capsys.readouterr().out
    # 4 bytes of 10 * (50 * 320 + 200 + 200) logits are 656,000
    assert re.search(r"the teacher runs beside the student: .*augmentation.*50 views.*teacher.cache=on.*656.0 kB", said)
    assert not (tmp_path / ".cache").exists()
    kept = run(tmp_path, teacher, "kept", *augmented, "teacher.cache=true")
    assert record_of(kept)["config"]["teacher"]["cache"] == "on"
    (entry,) = entries(tmp_path)
    assert np.load(entry / "train.npy").shape == (50, 320, 10)
    # not bit for bit: on some processors an image's last bits depend on where in its batch it stands
    assert_close_students(kept, auto)


@pytest.mark.slow
def test_of_k_views_auto_keeps_what_the_teacher_says_and_the_student_is_that_of_a_live_one(teacher, tmp_path, capsys):
    """Whatever the students' seeds are, the views are the same: the teacher is asked once."""
    shown = [f"data.augment.{key}" for key in ("views=3", "jitter=1", "resized_crop=0.4", "cutout=7")]
    auto = run(tmp_path, teacher, "auto", *FIFTY_STEPS, *shown)
    (entry,) = entries(tmp_path)
    kept = np.load(entry / "train.npy")
    assert kept.shape == (3, 320, 10) and min(np.abs(kept[i] - kept[i - 1]).max() for i in range(3)) > 0.1
    assert capsys.readouterr().out.count("asking the teacher") == 1
    run(tmp_path, teacher, "another", *FIFTY_STEPS, *shown, "seed=8", "distill.epochs=1")
    assert "the teacher's logits are in" in capsys.readouterr().out and entries(tmp_path) == [entry]
    live = run(tmp_path, teacher, "live", *FIFTY_STEPS, *shown, "teacher.cache=off")
    assert_close_students(auto, live)
    if answers_alike_wherever(teacher):
        assert_same_student(auto, live)


@pytest.mark.parametrize("insisting", [["stage=distill", "teacher.cache=on"], ["stage=cache"]])
def test_views_without_end_are_not_to_be_kept(teacher, insisting, tmp_path, capsys):
    given = [*SMALL, f"teacher.run={teacher}", f"outputs={tmp_path}", "data.augment.cutout=0.5"]
    assert main([*given, *insisting]) == 2
    said = capsys.readouterr().err
    assert "no two views of an image are alike" in said and "data.augment.views=4" in said and said.count("\n") == 1


def test_another_inference_batch_size_changes_no_more_than_rounding(teacher, live, tmp_path):
    other = run(tmp_path, teacher, "other", *FIFTY_STEPS, "teacher.inference_batch_size=37")
    assert_close_students(other, live)


def test_anything_else_is_refused(tmp_path, capsys):
    assert main([*SMALL, "teacher.cache=maybe", f"outputs={tmp_path / 'outputs'}"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("teacher.cache", "auto", "on", "off", "maybe")) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# A folder that cannot take them


@pytest.fixture(params=["full", "below a file"])
def no_room(request, tmp_path):
    """A cache_dir without room, the exit code of a run that insists on it, and what its line says."""
    if request.param == "full":
        return request.getfixturevalue("small_disk")("size=8k"), 1, "28.8 kB (No space left on device)"
    (tmp_path / "file").write_text("kept")
    return tmp_path / "file/below", 2, "cannot be written"


def test_auto_goes_on_without_a_cache_that_cannot_be_written(teacher, live, no_room, tmp_path, capsys):
    run_dir = run(tmp_path, teacher, "auto", *FIFTY_STEPS, f"cache_dir={no_room[0]}")
    line = re.findall(r"^teacher cache: .*$", capsys.readouterr().out, re.MULTILINE)[-1]
    assert f"{no_room[0]} cannot take the teacher's answers, 28.8 kB" in line and "Going on without it" in line
    assert "WARNING teacher cache:" in (run_dir / "kdrun.log").read_text()
    assert_same_student(run_dir, live)


@pytest.mark.parametrize("insisting", [["stage=distill", "teacher.cache=on"], ["stage=cache"], ["teacher.cache=on"]])
def test_a_run_that_insists_on_the_cache_ends_with_one_line(teacher, no_room, insisting, tmp_path, capsys):
    from kdrun.training import network

    network.release()  # which may have been taught already
    folder, exit_code, expected = no_room
    arguments = [f"teacher.run={teacher}", f"outputs={tmp_path / 'outputs'}", f"cache_dir={folder}"]
    assert main([*SMALL, *arguments, *insisting]) == exit_code
    said = capsys.readouterr().err
    assert said.startswith("kdrun: ") and said.count("\n") == 1 and "Traceback" not in said
    assert str(folder) in said and "cache_dir" in said and expected in said
    assert not list(tmp_path.glob("outputs/student/*"))  # the pipeline knows before it trains anything
    assert exit_code == 1 or not (tmp_path / "outputs").exists()


# Clearing


def test_clearing_lists_first_and_then_deletes_only_what_is_the_caches(tmp_path, capsys):
    folder = tmp_path / "cache"
    plain, mixed, busy = (filled(folder, DEPENDS | {"new": number}) for number in range(3))
    (mixed / "notes.txt").write_text("mine")
    damaged, partial = (plain.with_name(plain.name + suffix) for suffix in (".damaged", ".partial"))
    for path in (damaged, partial):
        shutil.copytree(plain, path)
    (partial / "manifest.json").unlink()
    for path in (folder / "photos/1.jpg", folder / ("0" * 32) / "1.jpg", folder / "readme.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    arguments = ["stage=cache", "cache.clear=true", f"cache_dir={folder}", f"outputs={tmp_path / 'outputs'}"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"would delete {path} (" in said for path in (plain, mixed, busy, damaged, partial))
    assert "cache.yes=true" in said and "photos" not in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with FileLock(f"{busy}.lock"):  # as if another kdrun were filling it
        assert main([*arguments, "cache.yes=true"]) == 0
    said = capsys.readouterr().out
    assert set(re.findall(r"deleted (\S+)", said)) == {str(path) for path in (plain, damaged, partial)}
    assert set(re.findall(r"(\S+) stays", said)) == {str(path) for path in (mixed, busy, folder / ("0" * 32))}
    gone = {path for path in before if path.parent in (plain, damaged, partial)}
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert after == {path: held for path, held in before.items() if path not in gone and path.suffix != ".lock"}


def test_clearing_what_a_killed_process_left_in_the_middle_of_its_manifest(tmp_path):
    folder = tmp_path / "cache"
    partial = filled(folder).rename(folder / f"{cache.key(DEPENDS)[:32]}.partial")
    (partial / "manifest.json").rename(partial / f".{'0' * 32}.manifest.json")  # as files.write_with names it
    arguments = ["stage=cache", "cache.clear=true", "cache.yes=true", f"cache_dir={folder}"]
    assert main([*arguments, f"outputs={tmp_path / 'outputs'}"]) == 0
    assert names(folder) == []


@pytest.mark.parametrize("exists", [False, True])
def test_clearing_an_empty_folder_says_that_it_is_empty(tmp_path, exists, capsys):
    if exists:
        (tmp_path / "cache").mkdir()
    arguments = [f"cache_dir={tmp_path / 'cache'}", f"outputs={tmp_path / 'outputs'}", "cache.yes=true"]
    assert main(["stage=cache", "cache.clear=true", *arguments]) == 0
    assert f"nothing of kdrun's is in {tmp_path / 'cache'}" in capsys.readouterr().out
    assert (tmp_path / "cache").exists() == exists


# The pipeline


def test_the_pipeline_fills_the_cache_after_the_teacher_and_before_the_student(pipeline):
    said = pipeline[1]
    order = ["teacher epoch 1/1", "asking the teacher", "teacher cache: filled", "student epoch 1/2"]
    order += ["the teacher's logits are in", "distill epoch 1/2"]
    places = [said.index(part) for part in order]
    assert places == sorted(places)
    assert said.count("asking the teacher") == 1


def test_a_pipeline_that_reuses_everything_asks_for_no_logits(pipeline, capsys):
    place, _ = pipeline
    arguments = [*SMALL, "epochs=2", f"outputs={place / 'outputs'}"]
    shutil.move(place / "outputs/.cache", place / "moved")
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("reusing the completed run") == 3
    assert "teacher cache" not in said
    assert not (place / "outputs/.cache").exists()
    shutil.move(place / "moved", place / "outputs/.cache")
