"""Files that somebody else may have written: only our own clear errors come out of reading them, and no memory goes."""

import gzip
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdrun.comparison import gathering
from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.runs import record as runs
from kdrun.storage import manifest

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def damaged(draw, content: bytes) -> bytes:
    """A file's content with bytes changed, cut or put in."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        what = draw(st.sampled_from(["change", "cut", "put"]))
        if what == "change" and place < len(content):
            content[place] = draw(st.integers(0, 255))
        elif what == "cut":
            del content[place : place + draw(st.integers(1, 50))]
        else:
            content[place:place] = draw(st.binary(min_size=1, max_size=20))
    return bytes(content)


def npz_of(**changes) -> bytes:
    images, labels = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | changes
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read_npz(path: Path) -> None:
    datasets._source.cache_clear()
    datasets._whole.cache_clear()
    sizes = {"validation_size": 2, "train_size": None, "test_size": None}
    datasets.load({"name": "npz", "path": str(path), "num_classes": None, **sizes})


@FEW
@given(st.data())
def test_any_npz_is_read_or_refused(tmp_path, data):
    path = tmp_path / "any.npz"
    path.write_bytes(damaged(data.draw, npz_of()))
    try:
        read_npz(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@FEW
@given(st.data(), st.booleans())
def test_any_idx_is_read_or_refused(tmp_path, write_idx_once, data, zipped):
    folder, contents = write_idx_once
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    chosen = data.draw(st.sampled_from(sorted(contents)))
    content = damaged(data.draw, contents[chosen])
    (folder / chosen).unlink()
    target, other = (f"{chosen}.gz", chosen) if zipped else (chosen, f"{chosen}.gz")
    (folder / other).unlink(missing_ok=True)
    (folder / target).write_bytes(damaged(data.draw, gzip.compress(content)) if zipped else content)
    datasets._source.cache_clear()
    datasets._whole.cache_clear()
    try:
        sizes = {"validation_size": 2, "train_size": None, "test_size": None}
        datasets.load({"name": "fashion_mnist", "path": str(folder), **sizes})
    except InputError as error:
        assert str(folder) in str(error)
    finally:
        (folder / f"{chosen}.gz").unlink(missing_ok=True)


@pytest.fixture
def write_idx_once(write_idx):
    folder, _ = write_idx()
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@FEW
@given(st.data())
def test_any_run_json_is_read_or_refused(tmp_path, data):
    record = {"stage": "teacher", "status": "running", "config": {"data": {"name": "mnist"}}, "heartbeat": "x"}
    value = data.draw(JSON | st.just(record) | st.fixed_dictionaries({key: JSON for key in (*record, "host", "files")}))
    content = json.dumps(manifest.sealed(value) if isinstance(value, dict) and data.draw(st.booleans()) else value)
    if data.draw(st.booleans()):
        content = damaged(data.draw, content.encode())
    (tmp_path / "run.json").write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        record = runs.read(tmp_path)
    except InputError as error:
        assert "run.json" in str(error)
    else:
        assert isinstance(record["stage"], str) and isinstance(record["config"]["data"], dict)


@FEW
@given(st.data())
def test_any_metrics_are_read_or_refused(tmp_path, data):
    lines = [{"epoch": 1, "step": 10, "split": split, "accuracy": 0.5} for split in ("train", "validation")]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    other = st.lists(JSON, max_size=3).map(lambda values: "\n".join(map(json.dumps, values)).encode())
    (tmp_path / "metrics.jsonl").write_bytes(data.draw(st.one_of(st.just(damaged(data.draw, content)), other)))
    try:
        table = gathering.curves(tmp_path)
    except InputError as error:
        assert "metrics.jsonl" in str(error) and "\n" not in str(error)
    else:
        assert table["accuracy"].dtype.kind in "fiu" and table["epoch"].dtype.kind in "fiu"


@FEW
@given(st.data())
def test_any_manifest_is_good_or_damaged(tmp_path, data):
    folder = tmp_path / "sealed"
    folder.mkdir(exist_ok=True)
    (folder / manifest.NAME).unlink(missing_ok=True)
    (folder / "file").write_bytes(b"content")
    manifest.seal(folder, {"fact": 1})
    content = (folder / manifest.NAME).read_bytes()
    changed = data.draw(JSON.map(lambda value: json.dumps(value).encode()) | st.just(damaged(data.draw, content)))
    (folder / manifest.NAME).write_bytes(changed)
    try:
        assert manifest.opened(folder) == {"fact": 1}
    except manifest.Damaged:
        assert _canonical(content) != _canonical(changed)


def _canonical(content: bytes) -> str | None:
    try:
        return json.dumps(json.loads(content), sort_keys=True)
    except (ValueError, RecursionError):
        return None


def lying(shape: tuple[int, ...], file_size: int) -> bytes:
    """A small .npz whose header, and the archive's directory, claim what it does not hold."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
    file = io.BytesIO(npz_of())
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        names = set(archive.namelist()) - {"x_train.npy"}
        kept = {name: archive.read(name) for name in names}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
        archive.writestr("x_train.npy", member.getvalue() + bytes(50))
        archive.getinfo("x_train.npy").file_size = file_size  # goes into the directory at the end
    return out.getvalue()


@pytest.mark.parametrize("shape", [(10**11, 1), (10**9, 10, 10)])
@pytest.mark.parametrize("directory_lies", [False, True])
def test_a_small_file_that_claims_100_gb_is_refused_without_taking_memory(tmp_path, shape, directory_lies):
    path = tmp_path / "lying.npz"
    path.write_bytes(lying(shape, 2**31 if directory_lies else 178))
    assert path.stat().st_size < 3000
    tracemalloc.start()
    with pytest.raises(InputError, match="lying"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_an_idx_header_that_claims_more_than_its_file_can_hold_is_refused_without_taking_memory(write_idx):
    folder, _ = write_idx()
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + np.array([2**32 - 1, 2**16, 2**8], ">u4").tobytes() + bytes(100))
    datasets._source.cache_clear()
    tracemalloc.start()
    with pytest.raises(InputError, match="for which the file is too small"):
        datasets.shapes({"name": "fashion_mnist", "path": str(folder)})
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_run_is_written_nowhere_but_below_outputs(command, tmp_path):
    for key in ("hydra.run.dir=../escaped", f"hydra.run.dir={tmp_path.parent}/escaped"):
        ended = command("stage=student", "experiment=convnets", key)
        assert ended.code == 2 and "is not below outputs=outputs" in ended.err
    ended = command("-m", "stage=student", "experiment=convnets", "hydra.sweep.dir=..", "seed=1,2")
    assert ended.code == 2 and "is not below outputs=outputs" in ended.err
    for key in ("hydra.output_subdir=../x", "+hydra.sweep.subdir=/tmp/x"):
        assert command("stage=student", "experiment=convnets", key).code == 2
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "mnist\n", "", 7, None])
def test_a_run_json_cannot_name_files_as_groups(command, tmp_path, name):
    run_dir = tmp_path / "outputs/student/a"
    run_dir.mkdir(parents=True)
    model = {"model": {"name": "mlp"}}
    chosen = {"data": {"name": name}, "teacher": model, "student": model, "stage": "student", "outputs": "outputs"}
    config = chosen | {"optimizer": {"name": "adam"}, "objective": {"kd": {}}, "resume": None}
    record = {"stage": "student", "status": "interrupted", "config": config}
    (run_dir / "run.json").write_text(json.dumps(manifest.sealed(record)))
    ended = command(f"resume={run_dir}")
    assert ended.code == 2 and ended.err.count("\n") == 1, ended
