"""Datasets: what is loaded is what the files hold, split as said; damage is refused."""

import gzip
import hashlib
import json

import numpy as np
import pytest

from kdrun.data import datasets, npz
from kdrun.errors import InputError

MNIST_TEST_LABELS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # how many of each digit


def settings(name: str, validation_size: int = 10, **keys) -> dict:
    return {"name": name, "validation_size": validation_size, "train_size": None, "test_size": None, **keys}


SIDES = ("train", "test")


def content(arrays: dict[str, np.ndarray], num_classes: int) -> str:
    """The sum of a data set, as docs/data.md says it is made."""
    shape, counts = list(arrays["x_train"].shape[1:]), [len(arrays[f"x_{part}"]) for part in SIDES]
    digest = hashlib.sha256(json.dumps([shape, *counts, None, num_classes]).encode())
    for part in SIDES:
        digest.update(b"".join(hashlib.sha256(image.tobytes()).digest() for image in arrays[f"x_{part}"]))
        digest.update(arrays[f"y_{part}"].astype("<i4").tobytes())
    return digest.hexdigest()


@pytest.fixture
def fresh():
    """Nothing is kept from what other tests loaded, nor for them."""
    for kept in (datasets._source, datasets._whole):
        kept.cache_clear()
    yield
    for kept in (datasets._source, datasets._whole):
        kept.cache_clear()


@pytest.fixture(scope="module")
def raw_mnist():
    with np.load(npz._MNIST) as archive:
        return dict(archive)


def test_mnist_is_the_published_one():
    mnist = datasets.load(settings("mnist", 10000))
    for split, count in ((mnist.train, 50000), (mnist.validation, 10000), (mnist.test, 10000)):
        assert split.images.shape == (count, 28, 28, 1) and split.images.dtype == np.uint8
        assert split.labels.shape == (count,) and split.labels.dtype == np.int32
        assert split.images.min() == 0 and split.images.max() == 255
    assert mnist.num_classes == 10
    assert np.bincount(mnist.test.labels).tolist() == MNIST_TEST_LABELS
    assert mnist.train.labels[:5].tolist() != mnist.validation.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert datasets.known_as(settings("mnist")) == (
        mnist.sha256,
        hashlib.sha256(npz._MNIST.read_bytes()).hexdigest(),  # what runs of before have recorded
    )


def test_mnist_shapes_come_from_headers():
    assert datasets.shapes(settings("mnist")) == ((60000, 28, 28), (10000, 28, 28))


@pytest.mark.parametrize("held_out", [10000, 1, 123])
def test_the_first_training_images_are_the_validation_set(raw_mnist, held_out):
    mnist = datasets.load(settings("mnist", held_out))
    assert np.array_equal(mnist.validation.images[..., 0], raw_mnist["x_train"][:held_out])
    assert np.array_equal(mnist.validation.labels, raw_mnist["y_train"][:held_out])
    assert np.array_equal(mnist.train.images[..., 0], raw_mnist["x_train"][held_out:])
    assert np.array_equal(mnist.train.labels, raw_mnist["y_train"][held_out:])
    assert np.array_equal(mnist.test.images[..., 0], raw_mnist["x_test"])
    assert np.array_equal(mnist.test.labels, raw_mnist["y_test"])


def test_sizes_cut_from_the_front_and_leave_validation_alone(raw_mnist):
    mnist = datasets.load(settings("mnist", 200) | {"train_size": 300, "test_size": 7})
    assert [len(split.images) for split in mnist[:3]] == [300, 200, 7]
    assert [len(split.labels) for split in mnist[:3]] == [300, 200, 7]
    assert np.array_equal(mnist.train.images[..., 0], raw_mnist["x_train"][200:500])
    assert np.array_equal(mnist.train.labels, raw_mnist["y_train"][200:500])
    assert np.array_equal(mnist.validation.images[..., 0], raw_mnist["x_train"][:200])
    assert np.array_equal(mnist.test.labels, raw_mnist["y_test"][:7])


def test_arrays_are_read_only(write_npz, write_idx):
    folder, _ = write_idx()
    npz = settings("npz", path=str(write_npz()), num_classes=None)
    for data in (settings("mnist"), npz, settings("fashion_mnist", path=str(folder))):
        for split in datasets.load(data)[:3]:
            for array in split:
                with pytest.raises(ValueError, match="read-only"):
                    array[0] = 0


@pytest.mark.parametrize("place", [100, 5_000_000, -30])
def test_mnist_with_one_flipped_bit_is_refused(fresh, tmp_path, monkeypatch, place):
    damaged = tmp_path / "mnist.npz"
    held = bytearray(npz._MNIST.read_bytes())
    held[place] ^= 1
    damaged.write_bytes(held)
    monkeypatch.setattr(npz, "_MNIST", damaged)
    for use in (datasets.shapes, datasets.fingerprint, datasets.load):
        with pytest.raises(InputError, match=r"mnist\.npz"):
            use(settings("mnist"))


def test_mnist_missing_from_the_installation_is_refused(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_MNIST", tmp_path / "mnist.npz")
    with pytest.raises(InputError, match=r"mnist\.npz"):
        datasets.load(settings("mnist"))


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(write_npz, channels, save):
    shape = (8, 6) if channels is None else (8, 6, channels)
    random = np.random.default_rng(1)
    arrays = {
        "x_train": random.integers(0, 256, (60, *shape), np.uint8),
        "y_train": (np.arange(60) % 4).astype(np.int64),
        "x_test": random.integers(0, 256, (20, *shape), np.uint8),
        "y_test": (np.arange(20) % 4).astype(np.uint16),
    }
    path = write_npz(save=save, extra=np.zeros(3), **arrays)
    data = settings("npz", path=str(path), num_classes=None)
    assert datasets.shapes(data) == ((60, *shape), (20, *shape))
    loaded = datasets.load(data)
    full = (8, 6, channels or 1)
    assert np.array_equal(loaded.validation.images, arrays["x_train"][:10].reshape(10, *full))
    assert np.array_equal(loaded.train.images, arrays["x_train"][10:].reshape(50, *full))
    assert np.array_equal(loaded.test.images, arrays["x_test"].reshape(20, *full))
    assert np.array_equal(loaded.train.labels, arrays["y_train"][10:]) and loaded.train.labels.dtype == np.int32
    assert np.array_equal(loaded.test.labels, arrays["y_test"]) and loaded.test.labels.dtype == np.int32
    assert loaded.num_classes == 4
    assert loaded.sha256 == content(arrays | {f"x_{part}": arrays[f"x_{part}"].reshape(-1, *full) for part in SIDES}, 4)


def test_npz_may_have_more_classes_than_labels_occur(write_npz):
    assert datasets.load(settings("npz", path=str(write_npz()), num_classes=7)).num_classes == 7


def test_npz_files_in_column_order_are_read_right(write_npz):
    images = np.asfortranarray(np.random.default_rng(2).integers(0, 256, (60, 8, 8), np.uint8))
    loaded = datasets.load(settings("npz", path=str(write_npz(x_train=images)), num_classes=None))
    assert np.array_equal(loaded.train.images[..., 0], images[10:])


@pytest.mark.parametrize(("opened", "suffix"), [(open, ""), (gzip.open, ".gz")])
def test_fashion_mnist_round_trip(write_idx, opened, suffix):
    folder, arrays = write_idx(opened, suffix)
    data = settings("fashion_mnist", path=str(folder))
    assert datasets.shapes(data) == ((60, 8, 8), (20, 8, 8))
    loaded = datasets.load(data)
    assert np.array_equal(loaded.validation.images[..., 0], arrays["x_train"][:10])
    assert np.array_equal(loaded.train.images[..., 0], arrays["x_train"][10:])
    assert np.array_equal(loaded.train.labels, arrays["y_train"][10:]) and loaded.train.labels.dtype == np.int32
    assert np.array_equal(loaded.test.images[..., 0], arrays["x_test"])
    assert np.array_equal(loaded.test.labels, arrays["y_test"])
    assert loaded.num_classes == 10


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_fashion_mnist_fingerprint_is_of_all_files(write_idx, fresh, file):
    folder, _ = write_idx()
    data = settings("fashion_mnist", path=str(folder))
    before = datasets.fingerprint(data)
    held = bytearray((folder / file).read_bytes())
    held[-1] ^= 1
    (folder / file).write_bytes(held)
    datasets._source.cache_clear()
    datasets._whole.cache_clear()
    assert datasets.fingerprint(data) != before


def test_a_dataset_is_read_once(write_npz):
    data = settings("npz", path=str(write_npz()), num_classes=None)
    first, second = datasets.load(data), datasets.load(data | {"train_size": 5})
    assert np.shares_memory(first.train.images, second.train.images)
    assert len(second.train.images) == 5
