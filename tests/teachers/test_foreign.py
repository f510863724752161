"""A network of another tool as teacher: what it may be, what is refused, in one line, and that nothing is left behind.

Of ONNX files, which take no time; of the other formats see test_foreign_formats.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import foreign_files as files
import numpy as np
import pytest
from held import bits
from identities import composed
from onnx import TensorProto, helper, numpy_helper
from processes import Kdrun

from kdrun.cli.compose import composing
from kdrun.cli.main import main
from kdrun.data import datasets
from kdrun.runtime import once
from kdrun.teachers import foreign

ORDERS = np.eye(3, dtype=np.float32)


@pytest.fixture(autouse=True)
def said_anew():
    once.say.cache_clear()


@pytest.fixture
def given(tmp_path) -> list[str]:
    return [*files.write(tmp_path), f"outputs={tmp_path / 'out'}"]


def assert_refused(ended, *said: str) -> None:
    """One line on standard error that says all of this; exit code 2; nothing was made."""
    assert ended.code == 2, ended
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("kdrun: ")
    for text in said:
        assert text in line, line
    assert not Path("out").exists()
    assert not children()


def children() -> list[str]:
    """Processes of other tools' networks that this process, or one of this house that is gone, has started."""
    found, here = [], str(Path(foreign.__file__).parents[2]).encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (path / "cmdline").read_bytes(), (path / "stat").read_text()
        except OSError:
            continue
        parent = int(status.split(") ")[-1].split()[1])
        if b"foreign_process" in command and (parent == os.getpid() or (parent == 1 and here in command)):
            found.append(path.name)
    return found


def kept(folder: Path, split: str = "train") -> np.ndarray:
    """What the cache holds of a split, from the one entry that has it."""
    (path,) = folder.glob(f"out/.cache/teachers/*/{split}.npy")
    return np.load(path)


def only(folder: Path, stage: str) -> Path:
    (found,) = folder.glob(f"out/{stage}/*/run.json")
    return found.parent


def by_split(folder: Path) -> dict[str, np.ndarray]:
    """What the cache holds of a teacher: train, validation and test."""
    (entry,) = (path.parent for path in folder.glob("out/.cache/teachers/*/train.npy"))
    return {path.stem: np.load(path) for path in entry.glob("*.npy")}


def write_logits(path: Path, logits: dict[str, np.ndarray], given: list[str]) -> Path:
    """A file of logits as teacher.logits takes it."""
    with composing():
        data = composed(*given)["data"]
    order = datasets.order(datasets.load(data))
    np.savez(path, **{**logits, "train": logits["train"][0]}, order=order)
    return path


def assert_teaches_as_its_logits_do(file: Path, given: list[str], folder: Path) -> None:
    """A student of a file, and one of its logits in another file, are the same to the last bit."""
    words = ["stage=distill", *given, "objective=[kd,dkd]"]
    assert main([*words, f"teacher.file={file}"]) == 0
    path = write_logits(folder / "logits.npz", by_split(folder), given)
    assert main([*words, f"teacher.file={path}", f"outputs={folder / 'other' / 'out'}"]) == 0
    assert bits(only(folder / "other", "distill")) == bits(only(folder, "distill"))


def of_zero() -> list:
    """Nodes that divide nothing by nothing."""
    zero = numpy_helper.from_array(np.float32(0), "value")
    return [
        helper.make_node("Constant", [], ["nothing"], value=zero),
        helper.make_node("Mul", ["z", "nothing"], ["zeros"]),
        helper.make_node("Div", ["zeros", "nothing"], ["logits"]),
    ]


def two_outputs() -> list:
    return [helper.make_node("ReduceMax", ["z"], ["logits"], axes=[0, 1], keepdims=1)]


REFUSED = {
    "channels in another order": ({}, ["teacher.input.channels=bgr"], ["accuracy 0.", "times chance", "channels"]),
    "another scale": ({}, ["teacher.input.scale=1"], ["accuracy 0.", "below 0.5000", "teacher.input.scale"]),
    "shuffled classes": (
        {"weights": files.WEIGHTS @ np.roll(ORDERS, 1, axis=1)},
        [],
        ["accuracy 0.0000", "With teacher.classes=[1,2,0] it would be 1.0000", "teacher.weak=allow"],
    ),
    "too few classes": ({"weights": files.WEIGHTS[:, :2]}, [], ["2 outputs", "3 classes", "knows all classes"]),
    "more classes": (
        {"weights": np.concatenate([files.WEIGHTS, files.WEIGHTS], axis=1)},
        [],
        ["6 outputs", "3 classes", "teacher.classes=[...]"],
    ),
    "no such output": ({}, ["teacher.classes=[0,1,3]"], ["teacher.classes=[0, 1, 3]", "from 0 to 2"]),
    "names of other classes": ({}, ["teacher.classes=[ant,bee,cat]"], ["the data's class '0' is 0 times among them"]),
    "no such file of names": ({}, ["teacher.classes=names.txt"], ["teacher.classes=names.txt cannot be read"]),
    "not a number": ({"last": of_zero()}, [], ["60 of 60 images is not finite"]),
    "never answers": ({"last": files.for_ever()}, ["teacher.time_limit=2"], ["has not answered in 2 s", "time_limit"]),
    "another layout": ({}, ["teacher.input.layout=NHWC"], ["[any, 3, 8, 8], and in the layout NHWC"]),
    "not of classes": ({"last": two_outputs()}, [], ["of 64 images it gives float32 [1, 1]"]),
    "never ending views": ({}, ["data.augment.cutout=2"], ["asked once", "data.augment.views=4"]),
    "not kept": ({}, ["teacher.cache=off"], ["teacher.cache=off", "asked once"]),
    "two teachers": ({}, ["teacher.run=somewhere"], ["Give one of them"]),
    "features": ({}, ["objective=fitnet"], ["an ONNX model cannot give a network's features"]),
}


@pytest.mark.parametrize(("network", "words", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_teach_is_refused_in_one_line(network, words, said, given, command, tmp_path):
    files.write_onnx(tmp_path / "net.onnx", **network)
    stage = [] if "teacher.cache=off" in words or "objective=fitnet" in words else ["teacher.inference_batch_size=64"]
    assert_refused(command("stage=distill", *given, *stage, "teacher.file=net.onnx", *words), *said)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


ODD = {
    "a file that is cut short": (lambda path: (files.write_onnx(path), cut(path)), "onnxruntime 1."),
    "no model": (lambda path: path.write_text("hello"), "is none of a Keras 3 model"),
    "an empty file": (lambda path: path.write_bytes(b""), "is none of a Keras 3 model"),
    "a PyTorch file": (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "torch.onnx.export"),
    "a folder": (lambda path: path.mkdir(), "is none of a Keras 3 model"),
    "nothing": (lambda path: None, "cannot be read (No such file or directory)"),
    "a pipe": (lambda path: os.mkfifo(path), "cannot be read (not a regular file)"),
}


@pytest.mark.parametrize(("write", "said"), ODD.values(), ids=ODD)
def test_what_is_no_model_is_refused_in_one_line(write, said, given, command, tmp_path):
    write(tmp_path / "net.onnx")
    assert_refused(command("stage=distill", *given, "teacher.file=net.onnx"), said)


def test_weights_in_another_file_are_refused(given, command, tmp_path):
    import onnx

    model = onnx.load(files.write_onnx(tmp_path / "net.onnx"))
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.data")
    assert_refused(command("stage=distill", *given, "teacher.file=net.onnx"), "external_data=False")


FITTING = {
    "channels last": ({"shape": ("n", 8, 8, 3)}, []),
    "half precision, one image at a time, scaled in two steps": (
        {"shape": (1, 3, 8, 8), "dtype": TensorProto.FLOAT16},
        ["teacher.input.scale=127.5", "teacher.input.std=[2,2,2]"],
    ),
    "its classes in another order": (
        {"weights": files.WEIGHTS @ np.roll(ORDERS, 1, axis=1)},
        ["teacher.classes=[1,2,0]"],
    ),
    "named classes among more": (
        {"weights": np.concatenate([files.WEIGHTS[:, ::-1], files.WEIGHTS], axis=1)},
        ["teacher.classes=['x','y','z','0','1','2']"],
    ),
}


@pytest.mark.parametrize(("network", "words"), FITTING.values(), ids=FITTING)
def test_its_answers_are_kept_as_logits_of_our_classes(network, words, given, tmp_path):
    path = files.write_onnx(tmp_path / "net", **network)
    assert main(["stage=cache", *given, f"teacher.file={path}", *words]) == 0
    x = files.images()["x_train"]
    coarse = 0.05 if network.get("dtype") == TensorProto.FLOAT16 else 1e-4
    np.testing.assert_allclose(kept(tmp_path)[0], files.logits(x[60:]), atol=coarse)


def test_probabilities_are_found_out_and_their_logarithm_is_taken(given, tmp_path, capfd):
    path = files.write_onnx(tmp_path / "net.onnx", last=[helper.make_node("Softmax", ["z"], ["logits"], axis=1)])
    assert main(["stage=cache", *given, f"teacher.file={path}"]) == 0
    z = files.logits(files.images()["x_train"][60:])
    np.testing.assert_allclose(kept(tmp_path)[0], z - np.log(np.exp(z).sum(axis=1, keepdims=True)), atol=1e-4)
    out = capfd.readouterr().out
    assert out.count("gives probabilities, not logits") == 1  # of two processes that found it out
    assert "accuracy 1.0000 on 60 validation images" in out


def test_it_teaches_as_a_file_of_its_logits_does(given, tmp_path):
    assert_teaches_as_its_logits_do(files.write_onnx(tmp_path / "net.onnx"), given, tmp_path)


def test_every_view_is_asked_for(given, tmp_path):
    path = files.write_onnx(tmp_path / "net.onnx")
    assert main(["stage=cache", *given, f"teacher.file={path}", "data.augment.jitter=1"]) == 0
    padded = np.pad(files.images()["x_train"][60:], [(0, 0), (1, 1), (1, 1), (0, 0)])
    views = [padded[:, row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    np.testing.assert_allclose(kept(tmp_path), [files.logits(view) for view in views], atol=1e-4)


def test_a_weak_teacher_may_teach_and_is_not_asked_again(given, tmp_path, capfd):
    path = files.write_onnx(tmp_path / "net.onnx")
    words = ["stage=cache", *given, f"teacher.file={path}", "teacher.input.scale=1"]
    assert main(words) == 2
    assert main([*words, "teacher.weak=allow"]) == 0
    assert "asking it" in capfd.readouterr().out
    path.write_bytes(path.read_bytes())  # another file of the same contents
    assert main([*words, "teacher.weak=allow", "teacher.time_limit=0.001"]) == 0  # nobody could answer in that time
    out = capfd.readouterr().out
    assert "asking" not in out and "the teacher's logits are in" in out
    assert main([*words, "teacher.input.scale=255"]) == 0  # kept answers are of one input
    capfd.readouterr()
    assert main(words) == 2  # kept answers are weak, too
    assert "times chance" in capfd.readouterr().err


def test_a_missing_runtime_is_said_before_anything_runs(given, command, tmp_path, monkeypatch):
    def missing(package: str) -> str:
        raise foreign.PackageNotFoundError(package)

    monkeypatch.setattr(foreign, "version", missing)  # as if it were not installed
    files.write_onnx(tmp_path / "net.onnx")
    assert_refused(command("stage=distill", *given, "teacher.file=net.onnx"), "pip install 'kdrun[onnx]'")


def test_memory_without_end_is_refused():
    code = "from kdrun.runtime.child import limit_memory; limit_memory(1 << 26); bytearray(1 << {})"
    ended = [subprocess.run([sys.executable, "-c", code.format(power)], capture_output=True) for power in (20, 28)]
    assert ended[0].returncode == 0 and b"MemoryError" in ended[1].stderr


@pytest.mark.slow
def test_killed_while_it_is_asked_nothing_stays(given, tmp_path):
    path = files.write_onnx(tmp_path / "net.onnx", last=files.for_ever())
    for number in (signal.SIGKILL, signal.SIGTERM):
        run = Kdrun(["stage=distill", *given, f"teacher.file={path}"], tmp_path)
        assert run.wait_until(lambda run=run: "it is given" in run.said())
        run.signal(number)
        run.wait()
        deadline = time.monotonic() + 20
        while children() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not children()
        assert not (tmp_path / "out").exists()
