"""Small data sets of real digits, in every kind of container: what they hold is the same."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kdrun.data import datasets, npz, report
from kdrun.stages import checks

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
NONE = {"train_size": None, "test_size": None}


def forget() -> None:
    """Nothing is kept from what was loaded before."""
    for remembered in (datasets._source, datasets._whole, report._findings, checks._say_findings):
        remembered.cache_clear()


def digits(count: int, first: int = 0, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """So many of MNIST's training images, cut to a square and tinted by their label, uint8 [n, side, side, 3], and
    their labels; each class in turn."""
    with np.load(npz._MNIST) as held:
        x, y = held["x_train"][:6000], held["y_train"][:6000]
    rank = np.empty(len(y), int)
    for label in range(10):
        rank[y == label] = np.arange((y == label).sum())
    chosen = np.lexsort((y, rank))[first : first + count]
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 2:30, 2:30] = x[chosen][..., None]
    images[..., 2] //= 1 + y[chosen][:, None, None].astype(np.uint8)
    edge = (32 - side) // 2
    return np.ascontiguousarray(images[:, edge : 32 - edge, edge : 32 - edge]), y[chosen].astype(int)


def arrays(train: int = 100, test: int = 40, side: int = 32) -> dict[str, np.ndarray]:
    """Training and test images with labels, by the names of a .npz."""
    (x, y), (x_test, y_test) = digits(train, 0, side), digits(test, train, side)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}


def png(image: np.ndarray) -> bytes:
    """An image as a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    return file.getvalue()


def write_folder(path: Path, held: dict[str, np.ndarray], splits: Sequence[str] = ("train", "test")) -> Path:
    """A folder for each split and class, of PNG files."""
    for split in splits:
        below = path / split if len(splits) > 1 else path
        for place, (image, label) in enumerate(zip(held[f"x_{split}"], held[f"y_{split}"], strict=True)):
            (below / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            (below / CLASSES[label] / f"{place:03}.png").write_bytes(png(image))
    return path


def write_table(path: Path, held: dict[str, np.ndarray]) -> Path:
    """A table, and beside it a folder of PNG files."""
    (path / "files").mkdir(parents=True)
    with (path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for split in ("test", "train"):
            for place, (image, label) in enumerate(zip(held[f"x_{split}"], held[f"y_{split}"], strict=True)):
                name = f"files/{split}, {place}.png"
                (path / name).write_bytes(png(image))
                rows.writerow([name, CLASSES[label], split])
    return path / "labels.csv"


def write_parquet(path: Path, held: dict[str, np.ndarray]) -> Path:
    """Parquet files as Hugging Face's `datasets` writes them: a struct of bytes and path, and numbers of classes."""
    import json

    import pyarrow as pa
    from pyarrow import parquet as pq

    names = {"names": list(CLASSES), "_type": "ClassLabel"}
    described = {"info": {"features": {"image": {"_type": "Image"}, "label": names}}}
    (path / "data").mkdir(parents=True)
    for split in ("train", "test"):
        images = [{"bytes": png(image), "path": f"{place}.png"} for place, image in enumerate(held[f"x_{split}"])]
        table = pa.table({"image": images, "label": pa.array(held[f"y_{split}"].tolist(), pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
        pq.write_table(table, path / "data" / f"{split}-00000-of-00001.parquet", row_group_size=32)
    return path


def write_cifar10(path: Path, held: dict[str, np.ndarray]) -> Path:
    """CIFAR-10's binary version: five files to train on, one to test."""
    path.mkdir(parents=True)
    for split, files in (("train", [f"data_batch_{n}.bin" for n in range(1, 6)]), ("test", ["test_batch.bin"])):
        rows = _rows(held[f"x_{split}"], held[f"y_{split}"][:, None])
        for name, part in zip(files, np.array_split(rows, len(files)), strict=True):
            (path / name).write_bytes(part.tobytes())
    (path / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return path


def _rows(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.concatenate([labels.astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(len(images), -1)], axis=1)


def write_cifar100(path: Path, held: dict[str, np.ndarray]) -> Path:
    """CIFAR-100's binary version: two labels a row, here the digit, and whether it is odd."""
    path.mkdir(parents=True)
    for split in ("train", "test"):
        fine = held[f"y_{split}"]
        (path / f"{split}.bin").write_bytes(_rows(held[f"x_{split}"], np.stack([fine % 2, fine], 1)).tobytes())
    return path


def write_npz(path: Path, held: dict[str, np.ndarray]) -> Path:
    """A .npz file."""
    np.savez(path, **held)
    return path
