"""stage=predict and load_run().predict: what a run says of images, held to its own test results and to a forward pass
of another kind; every kind of input; pictures that cannot be read; names of every kind. One training for all of it."""

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pictures
import pytest
import reference
from augmented import resized
from PIL import Image

import kdrun
from kdrun.cli.main import main
from kdrun.data import inputs
from kdrun.errors import InputError
from kdrun.runtime import tensorflow as startup
from kdrun.storage import manifest

startup.load_tensorflow()

SIDE = 16  # pixels that pictures are decoded to; the network sees 8
TINY = ["data=folder", "data.image_size=8", f"data.decode_size={SIDE}", "data.split=first", "data.validation_size=20"]
TINY += ["data.resize=pad", "batch_size=16", "epochs=2", "optimizer=adam", "evaluation_batch_size=4", "workers=1"]
TINY += ["optimizer.learning_rate=0.01", "measure_latency=false", "tensorboard.histograms=false"]
TINY += ["model@student.model=mlp", "student.model.hidden_units=[16]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a student's outputs and data, the answer to its command, and what else it printed."""
    folder = tmp_path_factory.mktemp("trained")
    pictures.write_folder(folder / "digits", pictures.arrays(100, 40))
    given = [*TINY, f"data.path={folder / 'digits'}", f"data.store={folder / 'store'}", f"outputs={folder / 'outputs'}"]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["stage=student", "print=json", *given]) == 0
    return folder, given, json.loads(out.getvalue()), err.getvalue()


@pytest.fixture
def run_dir(trained) -> Path:
    return Path(trained[2]["paths"]["run"])


@pytest.fixture
def predict(run_dir, tmp_path, capfd, monkeypatch):
    """Ask the trained student from an empty folder; the exit code, what was said, and both files' contents."""
    monkeypatch.chdir(tmp_path)

    def ask(given: str, *words: str):
        capfd.readouterr()
        code = main(["stage=predict", f"run={run_dir}", f"inputs={given}", *words])
        ended = capfd.readouterr()
        found = sorted(Path("outputs/predict").glob("*/predictions.*"), key=os.path.getmtime)[-2:]
        if not found:
            return code, ended, [], []
        table, lines = sorted(found)
        with table.open(newline="", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        return code, ended, rows, [json.loads(line) for line in lines.read_text().splitlines()]

    return ask


def save(path: str, image: np.ndarray, **how) -> np.ndarray:
    """Write an image; returns it in colour."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path, **how)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def probabilities(run_dir: Path, images: np.ndarray) -> np.ndarray:
    """By a forward pass of the weights' file and resizing of another kind, float64."""
    small = np.stack([resized(image, 8, 8) / 255 for image in images]).astype(np.float32)
    return reference.softmax(reference.logits(run_dir, "best", small))


def digits(count: int = 6) -> np.ndarray:
    return pictures.digits(count, 500, SIDE)[0]


def of_lines(lines: list[dict]) -> np.ndarray:
    """All probabilities of lines, by class."""
    of_each = [{best["class"]: best["probability"] for best in line["best"]} for line in lines]
    return np.array([[said[name] for name in CLASSES] for said in of_each])


CLASSES = pictures.CLASSES


def test_a_run_says_of_pictures_what_it_said_of_them_as_its_test_images(predict, run_dir, trained):
    code, ended, rows, lines = predict(trained[0] / "digits/test", "predict.top=10")
    assert code == 0, ended.err
    with np.load(run_dir / "predictions/test.npz") as held:
        said, labels = reference.softmax(held["logits"]).astype(np.float32), held["labels"]
    files = sorted(str(path) for path in (trained[0] / "digits/test").rglob("*.png"))
    assert [line["file"] for line in lines] == [row["file"] for row in rows] == files and len(files) == 40
    assert np.array_equal(of_lines(lines).astype(np.float32), said)
    for row, line, each in zip(rows, lines, said, strict=True):
        order = np.argsort(-each)
        assert line["class"] == row["class"] == CLASSES[order[0]] and line["best"][0]["class"] == line["class"]
        assert np.float32(row["probability"]) == np.float32(line["probability"]) == each[order[0]]
        assert [best["class"] for best in line["best"]] == [CLASSES[number] for number in order]
        assert (row["class_10"], np.float32(row["probability_10"])) == (CLASSES[order[9]], each[order[9]])
        assert row["error"] == "" and abs(sum(best["probability"] for best in line["best"]) - 1) < 1e-6
    wrong = sum(line["class"] != CLASSES[label] for line, label in zip(lines, labels, strict=True))
    assert wrong == reference.record(run_dir)["results"]["test"]["best"]["errors"]
    assert reference.record(run_dir)["raw_shape"] == [SIDE, SIDE, 3]


def test_from_python_an_array_of_any_size_and_files_are_the_same_as_a_plain_forward_pass(run_dir, tmp_path):
    run, small, large = kdrun.load_run(run_dir), digits(), pictures.digits(9, 300)[0]
    for images in (small, large):
        found = run.predict(images)
        assert found.dtype == np.float32 and found.shape == (len(images), 10)
        np.testing.assert_allclose(found, probabilities(run_dir, images), atol=1e-6)
    paths = [tmp_path / f"{number}.png" for number in range(len(small))]
    for path, image in zip(paths, small, strict=True):
        save(path, image)
    assert np.array_equal(run.predict(paths), run.predict(small))
    assert np.array_equal(run.predict(str(paths[1])), run.predict(small)[1:2])
    assert run.predict([]).shape == run.predict(small[:0]).shape == (0, 10)
    paths[2].write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"2 of 7 pictures cannot be read: '.*2\.png' \(no picture.*gone\.png' \(No such"
    ):
        run.predict([*paths, "gone.png"])
    for wrong in (small / 255, small[..., 0], small[0], small[..., :2], small.astype(int)):
        with pytest.raises(InputError, match=r"they must be uint8 \[n, height, width, 3\]"):
            run.predict(wrong)


def test_pictures_of_every_mode_are_prepared_as_training_images_are(predict, run_dir, tmp_path):
    colour, grey = digits(), digits()[0, ..., 0]
    alpha = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn to the right puts it upright
    expected = {
        "a colour.png": save("in/a colour.png", colour[0]),
        "b bmp.BMP": save("in/b bmp.BMP", colour[1]),
        "c grey.png": save("in/c grey.png", grey),
        "d turned.png": np.rot90(save("in/d turned.png", colour[2], exif=turned), -1),
        "e deep.tif": save("in/e deep.tif", grey.astype(np.uint16) << 8) >> 8,
        "f black and white.png": 255 * save("in/f black and white.png", grey > 99).astype(np.uint8),
    }
    save("in/g alpha.png", np.dstack([colour[3], alpha]))
    share = alpha[..., None] / 255
    expected["g alpha.png"] = np.round(share * colour[3] + (1 - share) * 255).astype(np.uint8)
    # wider than high: padded to a square with black, above and below
    wide = np.zeros((SIDE, SIDE, 3), np.uint8)
    wide[4:12] = save("in/h wide.png", colour[4][4:12])
    expected["h wide.png"] = wide
    code, ended, _, lines = predict("in", "predict.top=10")
    assert code == 0 and [line["file"] for line in lines] == [f"in/{name}" for name in sorted(expected)], ended.err
    images = np.stack([expected[name] for name in sorted(expected)])
    np.testing.assert_allclose(of_lines(lines), probabilities(run_dir, images), atol=2e-3)  # of blending, which rounds
    exact = [place for place, name in enumerate(sorted(expected)) if "alpha" not in name]
    np.testing.assert_allclose(of_lines(lines)[exact], probabilities(run_dir, images[exact]), atol=1e-6)


def test_broken_pictures_are_named_and_the_others_done(predict, tmp_path):
    for number, image in enumerate(digits(9)):
        save(f"in/{number}.png", image)
    whole = Path("in/3.png").read_bytes()
    for name, content in (("3", whole[:60]), ("5", b""), ("8", b"a text")):
        Path(f"in/{name}.png").write_bytes(content)
    code, ended, rows, lines = predict("in")
    assert code == 1 and len(lines) == len(rows) == 9
    broken = {line["file"]: line["error"] for line in lines if "error" in line}
    assert list(broken) == ["in/3.png", "in/5.png", "in/8.png"] and broken["in/5.png"] == "it is empty"
    assert {row["file"]: row["error"] for row in rows if row["error"]} == broken
    assert all(row["class"] == row["probability_5"] == "" for row in rows if row["error"])
    good = [line for line in lines if "error" not in line]
    Path("good").mkdir()
    for line in good:
        os.rename(line["file"], line["file"].replace("in/", "good/"))
    again = predict("good")
    assert again[0] == 0
    assert [line["best"] for line in again[3]] == [line["best"] for line in good]
    assert ended.err.startswith("kdrun: 3 of 9 pictures could not be read: 'in/3.png' (") and ended.err.count("\n") == 1
    (record,) = [each for each in map(reference.record, sorted(Path("outputs/predict").iterdir())) if "error" in each]
    assert record["status"] == "failed" and record["results"]["broken"] == 3
    assert record["results"]["images"] == 9 and sum(record["results"]["counts"]) == 6


def test_every_kind_of_input(predict, tmp_path, monkeypatch):
    images = digits()
    for place, name in enumerate(["a.png", "b.png", "deep/c.png", "deep/er/d.jpg", "e.png", "f.webp"]):
        save(f"in/{name}", images[place])
    Path("in/notes.txt").write_text("no picture")
    Path("in/.hidden.png").write_bytes(b"")
    Path("names").write_text("in/b.png\r\n\nin/deep/c.png\nin/a.png")
    monkeypatch.setattr(sys, "stdin", Path("names").open())  # noqa: SIM115 - read to its end
    expected = {
        "in": ["in/a.png", "in/b.png", "in/deep/c.png", "in/deep/er/d.jpg", "in/e.png", "in/f.webp"],
        "in/*.png": ["in/a.png", "in/b.png", "in/e.png"],
        "in/**/*.*g": ["in/a.png", "in/b.png", "in/deep/c.png", "in/deep/er/d.jpg", "in/e.png"],
        "in/b.png": ["in/b.png"],
        "-": ["in/b.png", "in/deep/c.png", "in/a.png"],
    }
    for given, names in expected.items():
        code, ended, rows, lines = predict(given)
        assert code == 0, (given, ended.err)
        assert [line["file"] for line in lines] == [row["file"] for row in rows] == names, given
    assert "in/b.png: " in ended.out  # of a few, what they are is said


def test_an_array_in_a_file_is_asked_about_row_by_row(predict, run_dir):
    images = pictures.digits(7, 200)[0]
    for held in ({"x": images, "y": np.zeros(7)}, {"whatever": images}):
        np.savez("some.npz", **held)
        code, ended, _, lines = predict("some.npz", "predict.top=10")
        assert code == 0 and [line["file"] for line in lines] == [f"some.npz[{n}]" for n in range(7)], ended.err
        np.testing.assert_allclose(of_lines(lines), probabilities(run_dir, images), atol=1e-6)


NAMES = ["a, b.png", 'quo"ted.png', "new\nline.png", "näme 名.png", "=1+1.png", "\udcff bytes.png", "-x.png", "{}.png"]


def test_names_of_every_kind_come_back_as_they_are(predict):
    for name in NAMES:
        with open(f"{name}", "wb") as file:
            file.write(pictures.png(digits()[0]))
    Path("in").mkdir()
    for name in NAMES:
        os.rename(name, os.path.join("in", name))
    os.chdir("in")
    code, ended, rows, lines = predict("*.png")
    assert code == 0, ended.err
    assert [line["file"] for line in lines] == sorted(NAMES)
    as_text = {name: f"'{name}" for name in ("=1+1.png", "-x.png")}  # a spreadsheet would compute them
    assert [row["file"] for row in rows] == [as_text.get(name, name) for name in sorted(NAMES)]
    assert len({row["probability"] for row in rows}) == 1
    Path("broken,\n.png").write_bytes(b"")
    code, ended, rows, lines = predict("broken*")
    assert code == 1 and rows[0]["file"] == lines[0]["file"] == "broken,\n.png" and ended.err.count("\n") == 1


REFUSED = {
    "inputs=empty": ["inputs: empty holds no pictures (png, jpg"],
    "inputs=texts": ["inputs: texts holds no pictures"],
    "inputs=nowhere": ["inputs: there is no nowhere", "'*.png'"],
    "inputs=no*where": ["inputs: there is no no*where"],
    "inputs=floats.npz": ["x is float64 [3, 8, 8, 3]", "uint8 [n, height, width, 3]"],
    "inputs=grey.npz": ["x is uint8 [3, 8, 8]", "3 channel(s)"],
    "inputs=none.npz": ["x is uint8 [0, 8, 8, 3]", "not empty"],
    "inputs=other.npz": ["it has no x", "one array of images"],
    "inputs=texts/damaged.npz": ["not a readable .npz file"],
    "inputs=nul.txt predict.top=0": ["predict.top must be a whole number of at least 1, got 0"],
    "inputs=empty data=mnist": ["data=mnist: stage=predict is asked about images without labels", "inputs=FOLDER"],
    "inputs=empty data.image_size=9": ["data.image_size=9: stage=predict"],
    "inputs=[a,b]": ["inputs must be a text"],
    "": ["inputs must be given"],
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_asked_about_is_refused_before_anything_is_made(predict, run_dir, tmp_path, capfd, given):
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("a")
    Path("texts/damaged.npz").write_bytes(b"PK\3\4 and no more")
    array = np.zeros((3, 8, 8, 3), np.uint8)
    for name, held in (("floats", {"x": array / 255}), ("grey", {"x": array[..., 0]}), ("none", {"x": array[:0]})):
        np.savez(f"{name}.npz", **held)
    np.savez("other.npz", a=array, b=array)
    code = main(["stage=predict", f"run={run_dir}", *given.split()])
    said = capfd.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "Traceback" not in said, said
    assert all(each in said for each in REFUSED[given]), said
    assert not Path("outputs").exists()


def test_a_run_without_a_good_network_is_refused(predict, run_dir, tmp_path, capfd):
    import shutil

    save("a.png", digits()[0])
    copy = tmp_path / "runs/student/copy"
    shutil.copytree(run_dir, copy)
    weights = copy / "checkpoints/best.weights.h5"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert main(["stage=predict", f"run={copy}", "inputs=a.png"]) == 2
    assert "best.weights.h5 is not what run.json says" in capfd.readouterr().err
    record = {**reference.record(copy), "status": "interrupted"}
    (copy / "run.json").write_text(json.dumps(manifest.sealed(record)))
    assert main(["stage=predict", f"run={copy}", "inputs=a.png"]) == 2
    assert "is interrupted, not completed" in capfd.readouterr().err
    assert main(["stage=predict", f"run={tmp_path}", "inputs=a.png"]) == 2
    assert "is not a run directory" in capfd.readouterr().err
    assert not Path("outputs").exists()


def test_a_record_of_before_raw_shape_and_a_false_one_still_decode(run_dir):
    record = reference.record(run_dir)
    assert inputs.decoding_of(record) == (3, SIDE, "pad")
    for raw in ([32, 32, 3], [10**6, 10**6, 3], [8, 12, 3], [8], None):
        changed = {**record, "raw_shape": raw} if raw else {k: v for k, v in record.items() if k != "raw_shape"}
        assert inputs.decoding_of(changed) == (3, {32: 32, 10**6: 8}.get((raw or [0])[0], SIDE), "pad")
    plain = {"config": {"data": {"image_size": 8}}, "image_shape": [8, 8, 1], "raw_shape": [28, 28, 1]}
    assert inputs.decoding_of(plain) == (1, 28, "stretch")  # as MNIST's are


def test_no_more_is_read_than_is_asked_for(tmp_path):
    """However many names there are."""
    taken = []

    def names():
        for number in range(10**9):
            taken.append(number)
            yield str(tmp_path / "a.png")

    save(tmp_path / "a.png", digits()[0])
    found = inputs.blocks(inputs.of_files(names(), inputs.Decoding(3, SIDE, "stretch")), 4)
    for count in (4, 8):
        assert next(found).images.shape == (4, SIDE, SIDE, 3) and len(taken) == count
    found.close()


@pytest.mark.slow
@pytest.mark.usefixtures("in_time")
def test_a_signal_ends_the_wait_for_names_and_leaves_no_half_a_file(predict, tmp_path, monkeypatch):
    """After some names, and where none has come yet."""
    save("a.png", digits()[0])
    for names, waited_for in ((b"a.png\n" * 6, "*/.*.predictions.jsonl"), (b"", "*")):
        before = set(Path("outputs/predict").glob("*"))

        def stop(waited_for=waited_for, before=before):
            while not set(Path("outputs/predict").glob(waited_for)) - before:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        reading, writing = os.pipe()
        os.write(writing, names)
        monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
        thread = threading.Thread(target=stop)
        thread.start()
        code, ended, *_ = predict("-")
        thread.join()
        os.close(writing)
        assert code == 130 and "Stopped by SIGINT" in ended.err, ended
    (run_dir,) = Path("outputs/predict").iterdir()
    assert reference.record(run_dir)["status"] == "interrupted"
    assert {path.name for path in run_dir.iterdir()} == {"run.json", "kdrun.log", ".lock", ".hydra"}


# print=json


@pytest.fixture
def answer(tmp_path, capfd, monkeypatch):
    """A command's exit code and its answer, which is all that standard output gets; and what else it said."""
    monkeypatch.chdir(tmp_path)

    def ask(*words: str):
        capfd.readouterr()
        code = main(["print=json", *words])
        out, err = capfd.readouterr()
        assert out.count("\n") == 1, out
        said = json.loads(out)
        assert said["exit_code"] == code
        return said, err

    return ask


def test_the_answer_of_a_training(trained, run_dir):
    _, _, said, err = trained
    assert said["stage"] == "student" and said["error"] is None and "student epoch 2/2" in err
    assert said["result"] == reference.record(run_dir)["results"]
    assert Path(said["paths"]["checkpoints/best.weights.h5"]).read_bytes()


def test_the_answer_of_a_completed_run_of_predict_and_of_evaluate(answer, trained, run_dir):
    said, err = answer(f"resume={run_dir}", f"outputs={trained[0] / 'outputs'}")
    assert said["paths"]["run"] == str(run_dir) and said["result"] == trained[2]["result"]
    assert "nothing left to do" in err
    save("in/a.png", digits()[0])
    save("in/b.png", digits()[1])
    said, err = answer("stage=predict", f"run={run_dir}", "inputs=in")
    assert said["result"]["images"] == 2 and said["exit_code"] == 0 and "in/a.png: " in err
    assert Path(said["paths"]["predictions.csv"]).read_text().startswith("file,class,probability,class_2")
    Path("in/b.png").write_bytes(b"")
    said, err = answer("stage=predict", f"run={run_dir}", "inputs=in")
    assert said["exit_code"] == 1 and said["error"].startswith("1 of 2 pictures could not be read")
    assert said["result"]["broken"] == 1 and "predictions.jsonl" in said["paths"]
    said, err = answer("stage=evaluate", f"run={run_dir}")
    assert said["result"]["best"] == trained[2]["result"]["test"]["best"] and "as run.json says" in err


@pytest.mark.slow
def test_the_answer_of_a_pipeline_has_a_verdict(answer, trained):
    said, err = answer("stage=pipeline", "arms=[student]", *trained[1])
    assert said["result"]["runs"][0]["run"] == trained[2]["paths"]["run"] and "reusing the completed run" in err
    assert said["verdict"] == said["result"]["sentence"] and said["verdict"]
    assert Path(said["paths"]["report.html"]).is_file()


def test_docs_predicting(trained, run_dir, tmp_path, monkeypatch, capfd):
    """Every command and the script of docs/predicting.md, on pictures of the names that it has."""
    monkeypatch.chdir(tmp_path)
    for name, image in zip(("cat", "dog"), digits(), strict=False):
        save(f"photos/{name}.jpg", image)
    np.savez("some.npz", x=digits())
    page = (Path(__file__).parents[2] / "docs/predicting.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.M | re.S)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        before, _, command = line.rpartition("| ")
        if before:
            Path("names").write_text(subprocess.run(shlex.split(before), capture_output=True, text=True).stdout)
            monkeypatch.setattr(sys, "stdin", Path("names").open())  # noqa: SIM115 - read to its end
        program, *words = shlex.split(command.replace("RUN", str(run_dir)))
        assert program == "kdrun" and main(words) == 0, (line, capfd.readouterr().err)
    counts = sorted(reference.record(each)["results"]["images"] for each in Path("outputs/predict").iterdir())
    assert counts == [1, 2, 2, 2, 2, 6]
    (script,) = (block for kind, block in blocks if kind == "python")
    capfd.readouterr()
    exec(script.replace("RUN", str(run_dir)), {})
    said = capfd.readouterr().out.splitlines()
    assert said[1] == "(3, 10)" and said[0].count("'") == 4
