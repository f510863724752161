"""Sources of images: whatever container they are in, the same images and labels are the same data set."""

import os
import shutil
from pathlib import Path

import numpy as np
import pictures
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import CLASSES, NONE, forget

from kdrun.data import datasets
from kdrun.errors import InputError

OF_FILES = {"channels": "auto", "resize": "stretch", "decode_size": 32, "skip_broken": False}
DRAWN = {"validation_size": 20, "split": "stratified", "split_seed": 3, **NONE}


@pytest.fixture(scope="module")
def held():
    return pictures.arrays()


@pytest.fixture(scope="module")
def containers(held, tmp_path_factory):
    """The same data in every container: by name, what `data` is."""
    top = tmp_path_factory.mktemp("containers")
    of_files = {**OF_FILES, "store": str(top / "store")}
    columns = {"image_column": None, "label_column": None}
    return {
        "npz": {"path": str(pictures.write_npz(top / "my.npz", held)), "num_classes": None},
        "folder": {"path": str(pictures.write_folder(top / "folder", held)), **of_files},
        "table": {"path": str(pictures.write_table(top / "table", held)), **of_files},
        "parquet": {"path": str(pictures.write_parquet(top / "parquet", held)), **columns, **of_files},
        "cifar10": {"path": str(pictures.write_cifar10(top / "cifar10", held))},
    }


@pytest.mark.parametrize("name", ["folder", "table", "parquet", "cifar10"])
def test_the_same_images_in_another_container_are_the_same_data_set(containers, name):
    forget()
    expected = datasets.load({"name": "npz", **containers["npz"], **DRAWN})
    found = datasets.load({"name": name, **containers[name], **DRAWN})
    assert found.sha256 == expected.sha256 and found.num_classes == 10 and found.class_names == CLASSES
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert np.asarray(ours.images).tobytes() == theirs.images.tobytes()
        assert ours.labels.tobytes() == theirs.labels.tobytes()


def test_another_pixel_label_or_seed_is_another_data_set(containers, held, tmp_path):
    forget()
    data = {"name": "npz", **containers["npz"], **DRAWN}
    sums = {datasets.fingerprint(data), datasets.fingerprint({**data, "split_seed": 4})}
    for number, (name, place) in enumerate([("x_train", (5, 9, 9, 0)), ("y_train", 5), ("y_test", 7)]):
        other = {key: array.copy() for key, array in held.items()}
        other[name][place] = (other[name][place] + 1) % 10
        path = pictures.write_npz(tmp_path / f"{number}.npz", other)
        sums.add(datasets.fingerprint({**data, "path": str(path)}))
    sums.add(datasets.fingerprint({**data, "num_classes": 11}))
    assert len(sums) == 6


def test_cifar100_has_fine_and_coarse_labels(held, tmp_path):
    path = pictures.write_cifar100(tmp_path / "cifar100", held)
    forget()
    first = {"validation_size": 20, "split": "first", **NONE}
    fine, coarse = (
        datasets.load({"name": "cifar100", "path": str(path), "labels": labels, **first})
        for labels in ("fine", "coarse")
    )
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert fine.train.labels.tolist() == held["y_train"][20:].tolist()
    assert coarse.test.labels.tolist() == (held["y_test"] % 2).tolist()
    assert np.array_equal(fine.test.images, held["x_test"])


@pytest.mark.parametrize("labels", ["column", "row"])
def test_npz_takes_the_names_and_shapes_that_people_have(held, tmp_path, labels):
    """MedMNIST's names; labels [n, 1], as Keras has them; validation images of its own; classes' names."""
    y = {key: array[:, None] if labels == "column" else array for key, array in held.items() if key[0] == "y"}
    np.savez(
        tmp_path / "med.npz",
        **{"train_images": held["x_train"][:80], "train_labels": y["y_train"][:80]},
        **{"val_images": held["x_train"][80:], "val_labels": y["y_train"][80:]},
        **{"test_images": held["x_test"], "test_labels": y["y_test"], "class_names": np.array(CLASSES)},
    )
    forget()
    data = {"name": "npz", "path": str(tmp_path / "med.npz"), "num_classes": None, "split": "first", **NONE}
    found = datasets.load({**data, "validation_size": None})
    assert found.class_names == CLASSES
    assert np.array_equal(found.train.images, held["x_train"][:80])
    assert np.array_equal(found.validation.images, held["x_train"][80:])
    assert np.array_equal(found.validation.labels, held["y_train"][80:])
    assert np.array_equal(found.test.images, held["x_test"])
    with pytest.raises(InputError, match=r"have validation images of their own, 20\. Leave it out"):
        datasets.load({**data, "validation_size": 5})


REFUSED = {
    "floats": ({"x_train": lambda x: x / 255}, "x_train is float64; it must be uint8", "round().astype('uint8')"),
    "one-hot": ({"y_train": lambda y: np.eye(10)[y]}, "one-hot", "y_train.argmax(axis=1)"),
    "zeros and ones": ({"x_train": lambda x: x // 255}, "x_train holds 0 and 1 only", "Multiply"),
    "names that are none": ({"class_names": lambda _: np.arange(10)}, "class_names is int64", "texts"),
    "too few names": ({"class_names": lambda _: np.array(["a", "b"])}, "2 class names for 10", "Each has one"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_people_have_instead_of_pixels_and_labels_is_refused_with_the_line_that_helps(command, held, kind):
    changes, said, helps = REFUSED[kind]
    np.savez("my.npz", **held | {name: change(held.get(name)) for name, change in changes.items()})
    forget()
    ended = command("stage=data", "data=npz", "data.path=my.npz")
    assert ended.code == 2 and ended.err.count("\n") == 1 and said in ended.err and helps in ended.err, ended.err
    assert os.listdir() == ["my.npz"]


DAMAGED = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_binary_file_is_refused(command, held, damage, tmp_path):
    path = pictures.write_cifar10(tmp_path / "cifar10", held)
    DAMAGED[damage](path / "data_batch_2.bin")
    forget()
    ended = command("stage=data", "data=cifar10", f"data.path={path}")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "data_batch_2.bin" in ended.err, ended.err


TABLES = {
    "no labels": ("path\nfiles/a.png\n", "no column label"),
    "no rows": ("path,label\n", "no rows"),
    "an empty label": ("path,label\na.png,\n", "row 2 has not a value"),
    "a value too many": ("path,label\na.png,1,2,3\n", "row 2 has not a value"),
    "pictures that are not there": ("path,label\nnowhere.png,1\n", "1 pictures that are not there: nowhere.png"),
    "another split": ("path,label,split\nlabels.csv,1,tset\n", "'tset' is no split"),
    "bytes": (b"path,label\n\xff\xfe,1\n", "cannot be read as a CSV file"),
    "an open quote": ('path,label\n"a.png,1\n', "cannot be read as a CSV file"),
    "ids": ("path,label\n" + "".join(f"labels.csv,{n}\n" for n in range(300)), "ids rather than classes"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_cannot_be_used_is_refused(command, tmp_path, kind):
    text, said = TABLES[kind]
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    forget()
    ended = command("stage=data", "data=table", "data.path=labels.csv")
    assert ended.code == 2 and ended.err.count("\n") == 1 and said in ended.err, ended.err


def test_parquet_of_plain_bytes_and_texts(command, held, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet as pq

    images = [pictures.png(image) for image in held["x_train"][:40]]
    what = [CLASSES[label] for label in held["y_train"][:40]]
    pq.write_table(pa.table({"photo": images, "animal": what}), tmp_path / "all.parquet")
    forget()
    path = ["stage=data", "data=parquet", "data.path=all.parquet"]
    ended = command(*path)
    assert ended.code == 2 and "columns photo, animal" in ended.err and "data.image_column=NAME" in ended.err
    ended = command(*path, "data.image_column=photo", "data.label_column=animal", "data.image_size=32")
    assert ended.code == 0 and "elk" in ended.out, ended.err
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "all.parquet").read_bytes()[:-9])
    forget()
    ended = command("stage=data", "data=parquet", "data.path=bad.parquet")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "bad.parquet cannot be read" in ended.err


def test_parquet_whose_description_has_names_and_whose_labels_are_texts(command, held, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet as pq

    path = pictures.write_parquet(tmp_path / "all", held) / "data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    for labels, said in ((["a", "b"] * 50, None), ([99] * 100, "its labels are from 99 to 99, and it names 10")):
        pq.write_table(table.set_column(1, "label", pa.array(labels)), tmp_path / "one.parquet")
        forget()
        ended = command("stage=data", "data=parquet", "data.path=one.parquet", "data.image_size=32")
        assert ended.code == (2 if said else 0) and (said or "") in ended.err, ended.err
        assert ended.err.count("\n") == bool(said)


@pytest.mark.usefixtures("in_time")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["table", "parquet", "cifar10"]), st.data())
def test_damage_is_refused_in_one_line_or_read(containers, tmp_path_factory, name, data):
    """Of what lists pictures: of pictures themselves, see test_pictures."""
    described = containers[name]
    source = Path(described["path"])
    top = tmp_path_factory.mktemp("damaged")
    shutil.copytree(source.parent if source.is_file() else source, top / "all")
    path = {
        "table": top / "all/labels.csv",
        "parquet": top / "all/data/train-00000-of-00001.parquet",
        "cifar10": top / "all/data_batch_3.bin",
    }[name]
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.none(), st.integers(0, len(content))))])
    forget()
    keys = {
        **described,
        "path": str(path if source.is_file() else top / "all"),
        "skip_broken": True,
        "store": str(top / "store"),
    }
    try:
        found = datasets.load({"name": name, **{key: keys[key] for key in described}, **DRAWN})
    except InputError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert np.asarray(found.train.images).dtype == np.uint8
    finally:
        shutil.rmtree(top)
