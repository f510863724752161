"""One network in every format that teaches: the same logits, and students alike; and files that are refused."""

import shutil
import signal
from pathlib import Path

import foreign_files as files
import numpy as np
import pictures
import pytest
from held import arrays, bits
from processes import Kdrun
from test_foreign import assert_refused, assert_teaches_as_its_logits_do, by_split, kept, only, said_anew, write_logits  # noqa: F401

from kdrun.cli.main import main
from kdrun.runs import record as runs

FORMS = ["net.keras", "net.h5", "exported", "net.onnx"]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    return files.write_all(tmp_path_factory.mktemp("made"))


@pytest.fixture
def given(tmp_path) -> list[str]:
    return [*files.write(tmp_path), f"outputs={tmp_path / 'out'}"]


@pytest.mark.slow
def test_a_keras_file_teaches_as_a_file_of_its_logits_does(made, given, tmp_path):
    assert_teaches_as_its_logits_do(made / "net.keras", given, tmp_path)


@pytest.mark.slow
def test_every_format_says_the_same(made, given, tmp_path):
    x, found = files.images(), {}
    expected = files.logits(x["x_train"][60:])
    for name in FORMS:
        out = tmp_path / name
        assert main(["stage=cache", *given, f"teacher.file={made / name}", f"outputs={out / 'out'}"]) == 0
        found[name] = kept(out)[0]
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
        np.testing.assert_allclose(by_split(out)["test"], files.logits(x["x_test"]), atol=1e-5)
    assert (found["net.keras"] == found["net.h5"]).all()


@pytest.mark.slow
def test_a_model_that_scales_pixels_itself_is_given_pixels(made, given, tmp_path, capfd):
    shutil.copy(made / "pixels.keras", tmp_path / "named.onnx")  # a name says nothing
    assert main(["stage=cache", *given, f"teacher.file={tmp_path / 'named.onnx'}"]) == 0
    out = capfd.readouterr().out
    assert "is a Keras model; it is given 8x8, rgb, NHWC, (pixel / 1 - 0) / 1" in out
    assert "gives probabilities, not logits" in out and "accuracy 1.0000" in out
    z = files.logits(files.images()["x_train"][60:])
    np.testing.assert_allclose(kept(tmp_path)[0], z - np.log(np.exp(z).sum(axis=1, keepdims=True)), atol=1e-4)


@pytest.mark.slow
def test_a_keras_file_has_features_those_of_a_model_inside_of_it_too(made, given, tmp_path, capfd):
    """In a student's every view, and with the same student when they are kept already."""
    net = ["model@student.model=resnet", "student.model.depth=8", "student.model.widths=[4,4,4,4]"]
    all_but_the_net = [word for word in given if word not in files.NETS]
    words = ["stage=distill", *all_but_the_net, *net, f"teacher.file={made / 'staged.keras'}", "teacher.weak=allow"]
    words += ["data.augment.flip=true", "objective=fitnet"]
    assert main([*words, "objective.fitnet.layers=[stage1,stage2,embedding]"]) == 0
    found = {each.shape[2:]: each for each in map(np.load, tmp_path.glob("out/.cache/teachers/*/train.npy"))}
    x = files.images()["x_train"][60:]
    expected = [files.staged(seen) for seen in (x, x[:, :, ::-1])]
    for name, plain in expected[0].items():
        kept_ones = found[plain.shape[1:]]
        np.testing.assert_allclose(kept_ones, np.stack([each[name] for each in expected]), rtol=1e-5, atol=1e-6)
    assert main([*words, "objective.fitnet.layers=[stage1,stage2,embedding]"]) == 0
    assert capfd.readouterr().out.count("asking the teacher") == 5  # of validation, three features and logits, once
    first, second = (path.parent for path in tmp_path.glob("out/distill/*/run.json"))
    assert bits(first) == bits(second)
    assert main([*words, "objective.fitnet.layers=[stage3:stage4]"]) == 2
    assert "the teacher has no layer stage4. Allowed: stage1, stage2, embedding" in capfd.readouterr().err


def short(made: Path, name: str, folder: Path) -> Path:
    """A copy of which the second half is missing."""
    path = folder / name
    if (made / name).is_dir():
        shutil.copytree(made / name, path)
        path = path / "saved_model.pb"
    else:
        shutil.copy(made / name, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder / name


NOT_TAKEN = {
    "coded.keras": "it has code in it, Lambda, which kdrun does not run",
    "coded.h5": "it has code in it, Lambda",
    "old.h5": "it has code in it, Lambda",
    "old.keras": "it was saved by Keras 2",
    "alone.weights.h5": "weights alone",
    "aborts": "was ended by SIGABRT",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "said"), NOT_TAKEN.items())
def test_what_is_code_or_crashes_is_refused_in_one_line(name, said, made, given, command):
    assert_refused(command("stage=distill", *given, f"teacher.file={made / name}"), said)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_what_is_cut_short_is_refused_in_one_line(name, made, given, command, tmp_path):
    path = short(made, name, tmp_path)
    assert_refused(command("stage=distill", *given, f"teacher.file={path}"), f"teacher.file: {path}")


@pytest.mark.slow
def test_a_pipeline_takes_it_in_place_of_a_teacher(given, tmp_path, capfd):
    path = files.write_onnx(tmp_path / "net.onnx")
    words = [*given, f"teacher.file={path}", "seeds=2", "data.augment.views=2", "data.augment.jitter=1"]
    assert main([*words, "controls=[shuffled]"]) == 0
    out = capfd.readouterr().out
    assert "distilled student" in out and "student alone" in out and "report.html" in out
    assert "no figure" not in out  # of what it says of the test images, which nobody keeps
    assert not (tmp_path / "out/teacher").exists()
    assert len(list(tmp_path.glob("out/distill/*/run.json"))) == 4
    assert kept(tmp_path).shape == (2, 60, 3)
    assert "asking it" in out and out.count("asking it") == 1


@pytest.mark.slow
def test_teachers_of_every_kind_teach_together(made, given, tmp_path):
    nets = ["model@teacher.model=mlp", "teacher.model.hidden_units=[8]"]
    assert main(["stage=teacher", *given, *nets]) == 0
    assert main(["stage=cache", *given, f"teacher.file={made / 'net.onnx'}"]) == 0
    logits = write_logits(tmp_path / "logits.npz", by_split(tmp_path), given)
    teachers = [made / "net.onnx", only(tmp_path, "teacher"), logits, made / "exported"]
    words = ["stage=distill", *given, f"teacher.file=[{','.join(map(str, teachers))}]", "teacher.weights=[1,2,3,4]"]
    assert main(words) == 0
    record = runs.read(only(tmp_path, "distill"))
    assert [each["run"] for each in record["teachers"]] == [str(each) for each in teachers]
    assert main([*words, "data.augment.flip=true"]) == 2  # of which the file of logits does not speak


@pytest.mark.slow
def test_a_run_that_goes_on_with_it_ends_with_the_same_bits(given, tmp_path):
    path = files.write_onnx(tmp_path / "net.onnx")
    words = ["stage=distill", *given, "epochs=20", f"teacher.file={path}", "data.augment.flip=true"]
    assert main([*words, f"outputs={tmp_path / 'whole' / 'out'}"]) == 0
    run = Kdrun(words, tmp_path)
    assert run.wait_until(lambda: list(tmp_path.glob("out/distill/*/checkpoints/state-*/manifest.json")), 600)
    run.signal(signal.SIGKILL)
    run.wait()
    stopped = only(tmp_path, "distill")
    assert runs.read(stopped)["status"] != "completed"
    shutil.rmtree(tmp_path / "out/.cache")  # it is asked again
    assert main([f"resume={stopped}"]) == 0
    assert bits(stopped) == bits(only(tmp_path / "whole", "distill"))


@pytest.mark.slow
def test_two_processes_at_once_ask_and_end_alike(made, given, tmp_path):
    words = ["stage=distill", *given, f"teacher.file={made / 'net.onnx'}"]
    both = [Kdrun(words, tmp_path) for _ in range(2)]
    assert [run.wait(600) for run in both] == [0, 0]
    first, second = (path.parent for path in tmp_path.glob("out/distill/*/run.json"))
    assert arrays(first / "checkpoints/best.weights.h5") == arrays(second / "checkpoints/best.weights.h5")
    assert len(list(tmp_path.glob("out/.cache/teachers/*/train.npy"))) == 1
    assert not list(tmp_path.glob("out/.cache/teachers/*.damaged*"))


@pytest.mark.slow
def test_a_run_teaches_other_images_of_the_same_classes(tmp_path, capfd):
    nets = ["model@teacher.model=mlp", "teacher.model.hidden_units=[8]", *files.TINY[1:], "data.validation_size=30"]
    nets += [f"outputs={tmp_path / 'out'}", "data=folder"]
    for name, first in (("first", 0), ("second", 140)):
        (x, y), (x_test, y_test) = pictures.digits(100, first, side=8), pictures.digits(40, first + 100, side=8)
        held = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
        pictures.write_folder(tmp_path / name, held)
    assert main(["stage=teacher", *nets, f"data.path={tmp_path / 'first'}"]) == 0
    teacher = only(tmp_path, "teacher")
    pictures.forget()
    words = [*nets, f"data.path={tmp_path / 'second'}", f"teacher.run={teacher}"]
    assert main(["stage=distill", *words]) == 0
    assert "was trained on other images (folder) of the same classes" in capfd.readouterr().out
    assert runs.read(only(tmp_path, "distill"))["teachers"][0]["trained_on"] == []
    assert main([*words, "arms=[distill]"]) == 0  # what it has said of its own test images is nobody's to compare
    pictures.forget()
    again = [*nets, "data.split=stratified", "data.split_seed=3", f"data.path={tmp_path / 'first'}"]
    assert main(["stage=distill", *again, f"teacher.run={teacher}"]) == 2
    assert "was trained on these images, split by data.split=first" in capfd.readouterr().err
    pictures.forget()
    (tmp_path / "second/train/ant").rename(tmp_path / "second/train/zoo")
    (tmp_path / "second/test/ant").rename(tmp_path / "second/test/zoo")
    assert main(["stage=distill", *words]) == 2
    assert "whose classes have the same names" in capfd.readouterr().err
