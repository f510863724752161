"""stage=predict and stage=evaluate by files that stage=export has made: they say what their run says, their metrics are
those of numpy, and what is damaged, cut short, swapped or of no use is refused. Two trainings for all of it."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pictures
import pytest
import reference
from augmented import resized
from PIL import Image

from kdrun.cli.main import main
from kdrun.errors import InputError
from kdrun.export import exported, facts, formats
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

SIDE = 16  # pixels that pictures are decoded to, and that files take; the network sees 8
DATA = ["data=folder", "data.image_size=8", f"data.decode_size={SIDE}", "data.validation_size=20", "data.resize=pad"]
TINY = ["batch_size=16", "epochs=20", "optimizer=adam", "optimizer.learning_rate=0.02", "evaluation_batch_size=16"]
TINY += ["workers=1", "measure_latency=false", "tensorboard.histograms=false"]
TINY += ["model@student.model=mlp", "student.model.hidden_units=[16]"]
# those of the second run give logits
FLOATS = ("first/saved_model", "first/model.tflite", "second/model.tflite", "second/model.onnx")
CLASSES = pictures.CLASSES


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of real pictures, two students of them, and what was exported of each: `first` gives probabilities,
    `second`, of another seed, logits; and what the command line says of the data."""
    folder = tmp_path_factory.mktemp("made")
    pictures.write_folder(folder / "digits", pictures.arrays(100, 40, SIDE))
    data = [*DATA, f"data.path={folder / 'digits'}", f"data.store={folder / 'store'}"]
    before = [f"outputs={folder / 'outputs'}"]
    of_each = {
        "first": ["export.quantize=[none,int8]", "export.format=[saved_model,litert]", "export.calibration_images=20"],
        "second": ["export.quantize=[none]", "export.output=logits", "export.format=[saved_model,litert,onnx]"],
    }
    for seed, (name, how) in enumerate(of_each.items()):
        assert main(["stage=student", f"seed={seed}", *before, *data, *TINY]) == 0
        newest(folder / "outputs/student").rename(folder / f"run_{name}")
        assert main(["stage=export", f"run={folder / f'run_{name}'}", *before, *how]) == 0
        newest(folder / "outputs/export").rename(folder / name)
    (folder / "alone").mkdir()
    shutil.copy(folder / "second/model.onnx", folder / "alone")
    return folder, data


def newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=os.path.getmtime)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run kdrun in an empty folder; the object that it answers with, and what it says on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[dict, str]:
        capfd.readouterr()
        code = main([*map(str, words), "print=json"])
        out, err = capfd.readouterr()
        answer = json.loads(out)
        assert answer["exit_code"] == code
        return answer, err

    return run


def rows_of(answer: dict) -> list[dict]:
    with open(answer["paths"]["predictions.csv"], newline="") as file:
        return list(csv.DictReader(file))


def lines_of(answer: dict) -> list[dict]:
    return [json.loads(line) for line in Path(answer["paths"]["predictions.jsonl"]).read_text().splitlines()]


def probabilities_of(answer: dict) -> np.ndarray:
    """All probabilities of a row each, by class, float64; of pictures that could be read."""
    good = [line for line in lines_of(answer) if "best" in line]
    of_each = [{best["class"]: best["probability"] for best in line["best"]} for line in good]
    return np.array([[said[name] for name in CLASSES] for said in of_each])


def said_by(run_dir: Path, names: list[str]) -> np.ndarray:
    """Of pictures of SIDE x SIDE pixels, by a forward pass of the weights and resizing of another kind, float64."""
    images = [resized(np.asarray(Image.open(name)), 8, 8) / 255 for name in names]
    return reference.softmax(reference.logits(run_dir, "best", np.stack(images).astype(np.float32)))


@pytest.mark.parametrize("name", FLOATS)
def test_a_file_of_floats_says_what_its_run_says(command, made, name):
    """What stage=predict writes by the file is what it writes by the run, and what a plain forward pass gives."""
    folder, _ = made
    run, inputs = folder / f"run_{name.partition('/')[0]}", f"inputs={folder / 'digits/test'}"
    by_run, _ = command("stage=predict", f"run={run}", inputs, "predict.top=10")
    answer, err = command("stage=predict", f"file={folder / name}", inputs, "predict.top=10", "threads=3")
    assert answer["exit_code"] == 0 and answer["result"] == by_run["result"], err
    rows = rows_of(answer)
    assert len(rows) == 40 and classes_of(rows) == classes_of(rows_of(by_run))
    said = said_by(run, [row["file"] for row in rows])
    np.testing.assert_allclose(probabilities_of(answer), said, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(probabilities_of(answer), probabilities_of(by_run), rtol=1e-4, atol=1e-7)
    record = reference.record(Path(answer["paths"]["run"]))
    assert record["predicted"] == str(folder / name) and record["threads"] == 3


def classes_of(rows: list[dict]) -> list[tuple]:
    return [(row["file"], row["class"], row["class_2"], row["error"]) for row in rows]


def test_arrays_are_asked_about_a_savedmodel_of_any_size_and_broken_pictures_named(command, made):
    """An export's directory with one file in it stands for that."""
    folder, _ = made
    small, large = pictures.digits(6, 100, SIDE)[0], pictures.digits(3, 100, 24)[0]
    np.savez("small.npz", x=small)
    np.savez("large.npz", x=large)
    Path("in").mkdir()
    for place, image in enumerate(large):  # made the squares that training images were: padded, not stretched
        Path(f"in/{place}.png").write_bytes(pictures.png(image[4 * place : 24 - 4 * place]))
    Path("in/1.png").write_bytes(b"no picture")
    of_both = [("alone", "second", "small.npz"), ("first/saved_model", "first", "large.npz")]
    for file, run, given in [*of_both, ("first/model.tflite", "first", "in")]:
        answer, err = command("stage=predict", f"file={folder / file}", f"inputs={given}", "predict.top=10")
        by_run, _ = command("stage=predict", f"run={folder / f'run_{run}'}", f"inputs={given}", "predict.top=10")
        assert answer["exit_code"] == (given == "in") and answer["result"] == by_run["result"], err
        assert classes_of(rows_of(answer)) == classes_of(rows_of(by_run))
        np.testing.assert_allclose(probabilities_of(answer), probabilities_of(by_run), rtol=1e-4, atol=1e-7)
        if file == "alone":
            assert [line["file"] for line in lines_of(answer)] == [f"small.npz[{place}]" for place in range(6)]
            assert reference.record(Path(answer["paths"]["run"]))["predicted"] == str(folder / "alone/model.onnx")
    assert "1 of 3 pictures could not be read: 'in/1.png'" in err and answer["result"]["broken"] == 1


@pytest.mark.parametrize("name", ["first/model_int8.tflite", "alone"])
def test_metrics_of_a_file_are_those_of_numpy(command, made, name):
    """Of what it says of the same pictures, by stage=predict, and of their folders' names."""
    folder, data = made
    said, _ = command("stage=predict", f"file={folder / name}", f"inputs={folder / 'digits/test'}", "predict.top=10")
    given = probabilities_of(said)
    labels = np.array([CLASSES.index(Path(line["file"]).parent.name) for line in lines_of(said)])
    answer, err = command("stage=evaluate", f"file={folder / name}", *data)
    assert answer["exit_code"] == 0, err
    if "int8" in name:
        assert (given == 0).any()  # whose logarithm is taken all the same
    p = np.maximum(given, np.finfo(np.float32).tiny)
    right, p = given.argmax(axis=1) == labels, p / p.sum(axis=1, keepdims=True)
    by_class = [right[labels == label].mean() for label in range(10)]
    measured = answer["result"]["file"]
    assert answer["result"].keys() == {"file", "confusion"}
    assert measured["count"] == 40 and measured["errors"] == int((~right).sum())
    assert measured["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    assert measured["balanced_accuracy"] == pytest.approx(np.mean(by_class), abs=1e-12)
    assert measured["class_accuracy"] == pytest.approx(by_class, abs=1e-12)
    assert measured["cross_entropy"] == pytest.approx(-np.log(p[np.arange(40), labels]).mean(), rel=1e-5)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, given.argmax(axis=1)), 1)
    assert answer["result"]["confusion"] == confusion.tolist()
    record = reference.record(Path(answer["paths"]["run"]))
    assert record["class_names"] == list(CLASSES) and record["status"] == "completed"
    assert f"{100 * right.mean():.2f}%" in err and "balanced accuracy" in err and "jay" in err


def test_the_calling_process_loads_no_tensorflow(made, tmp_path):
    folder, data = made
    code = "import sys; from kdrun.cli.main import main; code = main(sys.argv[1:]); "
    code += "sys.exit(code or 10 * ('tensorflow' in sys.modules))"
    file = f"file={folder / 'first/model.tflite'}"
    for words in ([f"inputs={folder / 'digits/test/ant'}", "stage=predict"], ["stage=evaluate", *data]):
        ended = subprocess.run([sys.executable, "-c", code, file, *words], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr


def test_docs_predicting(command, made):
    """Every command of docs/predicting.md about a file."""
    shutil.copytree(made[0] / "digits/test/ant", "photos")
    pictures.write_folder(Path("labelled"), pictures.arrays(100, 40, SIDE))
    page = (Path(__file__).parents[2] / "docs/predicting.md").read_text()
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *words = line.replace("FILE", str(made[0] / "alone")).split()
        answer, err = command(*words)
        assert program == "kdrun" and answer["exit_code"] == 0, err


# What is refused, before anything is made


def copied(made, name: str, to: str) -> Path:
    source, path = made[0] / name, Path(to)
    return Path(shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path))


def facts_of(content: bytes) -> dict:
    """As a .onnx file has them at its end."""
    return json.loads(content[content.rindex(b'{"class_names"') :])


def with_facts(made, **changes) -> Path:
    """A .onnx file that says something else of itself, whole."""
    content = (made[0] / "alone/model.onnx").read_bytes()
    start = content.rindex(b"\x72", 0, content.rindex(b"\x0a\x05kdrun\x12"))
    said = facts_of(content)
    Path("other.onnx").write_bytes(facts.attached("onnx", content[:start], {**said, **changes}))
    return Path("other.onnx")


def swapped_labels(made) -> Path:
    """The network of one export, and what another says of itself."""
    return swapped(made, "first/model.tflite", "second/model.tflite")


def swapped(made, network: str, labels: str) -> Path:
    contents = [(made[0] / name).read_bytes() for name in (network, labels)]
    starts = [content.index(b"PK\3\4") for content in contents]
    Path("swapped.tflite").write_bytes(contents[0][: starts[0]] + contents[1][starts[1] :])
    return Path("swapped.tflite")


def with_variables_of_another(made) -> Path:
    folder = copied(made, "first/saved_model", "mixed")
    name = "variables/variables.data-00000-of-00001"
    shutil.copy(made[0] / "second/saved_model" / name, folder / name)
    return folder


def with_labels_changed(made) -> Path:
    folder = copied(made, "first/saved_model", "relabelled")
    labels = folder / "assets.extra/labels.txt"
    labels.write_text(labels.read_text().replace("ant", "owl"))
    return folder


def text_file(made) -> Path:
    Path("x.tflite").write_text("a text\n")
    return Path("x.tflite")


def fifo(made) -> Path:
    os.mkfifo("x.onnx")
    return Path("x.onnx")


def empty(made) -> Path:
    Path("x.tflite").touch()
    return Path("x.tflite")


def link_to_nothing(made) -> Path:
    Path("x.onnx").symlink_to("nowhere.onnx")
    return Path("x.onnx")


def empty_saved_model(made) -> Path:
    Path("x").mkdir()
    Path("x/saved_model.pb").touch()
    return Path("x")


def of_fewer_channels(made) -> Path:
    return with_facts(made, input=[SIDE, SIDE, 1])


FILES = {
    "labels of another": (swapped_labels, "not written by kdrun's stage=export, or is damaged"),
    "renamed": (lambda made: copied(made, "first/model.tflite", "x.onnx"), "or is damaged"),
    "renamed, too": (lambda made: copied(made, "second/model.onnx", "x.tflite"), "or is damaged"),
    "another's variables": (with_variables_of_another, "or is damaged"),
    "another's labels.txt": (with_labels_changed, "or is damaged"),
    "a text": (text_file, "or is damaged"),
    "a FIFO": (fifo, "cannot be read (not a regular file)"),
    "empty": (empty, "or is damaged"),
    "a link to nothing": (link_to_nothing, "cannot be read (No such file or directory)"),
    "a SavedModel without facts": (empty_saved_model, "cannot be read (No such file or directory)"),
    "facts that do not fit": (of_fewer_channels, "how pictures are decoded is not for its input"),
    "nowhere": (lambda made: Path("nowhere.tflite"), "there is no nowhere.tflite"),
    "a run": (lambda made: made[0] / "run_first", "is no exported network. Give what stage=export has written"),
    "several": (
        lambda made: made[0] / "second",
        "holds model.onnx, model.tflite, saved_model. Name one of them: file=",
    ),
    "a picture": (lambda made: made[0] / "digits/test/ant/000.png", "is no exported network"),
}


@pytest.mark.parametrize("stage", ["predict", "evaluate"])
@pytest.mark.parametrize("what", FILES)
def test_what_is_no_whole_exported_file_is_refused(command, made, what, stage):
    make, expected = FILES[what]
    words = [f"inputs={made[0] / 'digits/test'}"] if stage == "predict" else made[1]
    refused(command(f"stage={stage}", f"file={make(made)}", *words), expected)


def refused(ended: tuple[dict, str], *expected: str) -> None:
    answer, err = ended
    assert answer["exit_code"] == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    assert all(each in err for each in expected), err
    assert answer["paths"] == {} and answer["error"] in err and not Path("outputs").exists()


@pytest.mark.parametrize("name", ["first/model.tflite", "first/model_int8.tflite", "second/model.onnx"])
def test_a_damaged_or_truncated_file_is_refused_wherever_it_is_damaged(command, made, name):
    path = copied(made, name, Path(name).name)
    whole = path.read_bytes()
    assert exported.found(str(path)).facts["class_names"] == list(CLASSES)
    said = len(whole) - 900  # from here on, about, a file says what it is
    for place in [*range(0, said, said // 100), *range(said, len(whole))]:
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match="file: "):
            exported.found(str(path))
    inputs = f"inputs={made[0] / 'digits/test'}"
    refused(command("stage=predict", f"file={path}", inputs), "damaged")
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="file: "):
            exported.found(str(path))
    refused(command("stage=evaluate", f"file={path}", *made[1]), "damaged")
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="file: "):
        exported.found(str(path))


def test_a_damaged_saved_model_is_refused_whichever_of_its_files_is_damaged(command, made):
    folder = copied(made, "first/saved_model", "saved_model")
    inputs, names = f"inputs={made[0] / 'digits/test'}", [path for path in folder.rglob("*") if path.is_file()]
    assert len(names) >= 5
    for path in names:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for content in (bytes(flipped), whole[:-1], whole + b"\0", None):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(InputError, match="file: "):
                exported.found(str(folder))
        path.write_bytes(whole)
    assert exported.found(str(folder)).size is None
    (folder / "variables/more").touch()
    refused(command("stage=predict", f"file={folder}", inputs), "or is damaged")


def test_what_does_not_go_together_is_refused(command, made):
    folder, data = made
    file, run = f"file={folder / 'first/model.tflite'}", f"run={folder / 'run_first'}"
    np.savez("large.npz", x=pictures.digits(3, 100, 24)[0])
    np.savez("grey.npz", x=pictures.digits(3, 100, SIDE)[0][..., 0])
    inputs = f"inputs={folder / 'digits/test'}"
    for words in (["stage=predict", inputs], ["stage=evaluate"], ["stage=evaluate", *data]):
        refused(command(*words), "run or file must be given", "run=RUN_DIRECTORY", "file=FILE")
        refused(command(*words, file, run), "are two networks. Leave one of them out")
    refused(command("stage=predict", file, "inputs=large.npz"), "images of 24x24 pixels", "those of 16x16 alone")
    refused(command("stage=predict", file, "inputs=grey.npz"), "x is uint8 [3, 16, 16]", "3 channel(s)")
    refused(command("stage=predict", file, inputs, "data.image_size=9"), "data.image_size=9: stage=predict is asked")
    refused(command("stage=predict", "file=[a,b]", inputs), "file must be a text")
    refused(command("stage=evaluate", file), "data must be given", "data=mnist")
    refused(
        command("stage=evaluate", file, "data=mnist"), "its images have 1 channel(s), and the file's network sees 3"
    )
    refused(command("stage=evaluate", file, *data, "data.image_size=9"), "the file's network sees images of 8 pixels")
    refused(command("stage=evaluate", file, *data, "data.test_size=41"), "data.test_size=41 is more than there are: 40")
    oblong = with_facts(made, input=[SIDE, 12, 3])
    for given in (inputs, "inputs=-"):
        refused(command("stage=predict", f"file={oblong}", given), "made squares", "16x12 pixels alone", ".npz")
    np.savez("square.npz", x=pictures.digits(3, 100, SIDE)[0])
    refused(command("stage=predict", f"file={oblong}", "inputs=square.npz"), "16x16 pixels", "those of 16x12 alone")


def test_data_that_are_not_the_files_are_refused(command, made):
    folder, _ = made
    held = pictures.arrays(100, 40, 24)
    pictures.write_npz(Path("large.npz"), held)
    file = f"file={folder / 'first/model.tflite'}"
    of_npz = ["data=npz", "data.path=large.npz", "data.validation_size=20"]
    refused(command("stage=evaluate", file, *of_npz), "images are of 24x24 pixels", "takes those of 16x16 alone")
    held = pictures.arrays(100, 40, SIDE)
    pictures.write_npz(Path("more.npz"), {**held, "y_test": held["y_test"] + 1, "y_train": held["y_train"] + 1})
    refused(
        command("stage=evaluate", file, *of_npz, "data.path=more.npz"),
        "labels go up to 10",
        "the file's network tells 10 classes apart",
    )
    other = pictures.write_folder(Path("other"), pictures.arrays(100, 40))
    (other / "test/ant").rename(other / "test/zebra")
    (other / "train/ant").rename(other / "train/zebra")
    data = [*DATA, f"data.path={other}", "data.store=store"]
    answer, err = command("stage=evaluate", file, *data)
    assert answer["exit_code"] == 2 and "class 0 is bee, and ant to the file's network" in err
    answer, _ = command("stage=evaluate", f"file={folder / 'first/saved_model'}", *of_npz)
    assert answer["result"]["file"]["count"] == 40  # a SavedModel takes any size


def test_a_file_whose_answers_are_not_of_its_classes_ends_with_an_error(command, made):
    path = with_facts(made, class_names=list(CLASSES[:9]))
    answer, err = command("stage=predict", f"file={path}", f"inputs={made[0] / 'digits/test'}")
    assert answer["exit_code"] == 1 and "gives 10 numbers of an image, and names 9 classes" in err
    assert not {"predictions.csv", "predictions.jsonl"} & answer["paths"].keys()


@pytest.mark.parametrize(("name", "package"), [("model.tflite", "ai-edge-litert"), ("model.onnx", "onnxruntime")])
def test_what_runs_a_file_must_be_installed_and_what_makes_it_need_not(command, made, monkeypatch, name, package):
    def missing(asked: str) -> str:
        if asked == package:
            raise PackageNotFoundError(asked)
        raise AssertionError(f"{asked} is not needed")

    monkeypatch.setattr(formats, "version", missing)  # as if it were not installed
    ended = command("stage=predict", f"file={made[0] / 'second' / name}", f"inputs={made[0] / 'digits/test'}")
    refused(ended, f"is run by {package}. Install it: pip install 'kdrun[")
    assert re.search(r"kdrun\[(litert|onnx)\]", ended[1])
