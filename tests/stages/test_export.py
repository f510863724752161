"""stage=export: files in every format and quantisation, each held to the run by runtimes that the test itself starts;
what they say of themselves; what is refused, and what an export that ends early leaves. One training for all of it."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pictures
import pytest
import reference
import yaml
from PIL import Image
from processes import Kdrun

from kdrun.cli.main import main
from kdrun.data import datasets
from kdrun.export import facts, formats
from kdrun.runtime import tensorflow as startup
from kdrun.storage import manifest

startup.load_tensorflow()

SIDE = 16  # pixels that pictures are decoded to; the network sees 8
TINY = ["data=folder", "data.image_size=8", f"data.decode_size={SIDE}", "data.validation_size=40"]
TINY += ["batch_size=16", "epochs=8", "optimizer=adam", "optimizer.learning_rate=0.01", "measure_latency=false"]
TINY += ["tensorboard.histograms=false", "workers=1", "data.normalise=dataset", "seed=3"]
NET = ["model@student.model=convnet", "student.model.filters=[4,8]"]
ALL = ["export.format=[saved_model,litert,onnx]", "export.quantize=[none,float16,dynamic,int8]"]
FILES = ("model.tflite", "model_float16.tflite", "model_dynamic.tflite", "model_int8.tflite", "model.onnx")
FILES += ("model_float16.onnx", "model_dynamic.onnx", "model_int8.onnx", "saved_model")
# by how much probabilities may differ; of int8, what a step of 1/256 a layer adds up to
MOST = {"float16": 5e-3, "dynamic": 0.05, "int8": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of data and outputs."""
    folder = tmp_path_factory.mktemp("exported")
    pictures.write_folder(folder / "digits", pictures.arrays(200, 60))
    return folder


@pytest.fixture(scope="module")
def run_dir(folder) -> Path:
    return answer(folder, "stage=student", *TINY, *NET, f"data.path={folder / 'digits'}", f"data.store={folder / 's'}")


@pytest.fixture(scope="module")
def export(folder, run_dir) -> Path:
    """The directory of an export in every way."""
    return answer(folder, "stage=export", f"run={run_dir}", *ALL)


def answer(folder: Path, *words: str) -> Path:
    """The run directory of a command that goes well."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*words, f"outputs={folder / 'outputs'}", "print=json"]) == 0
    return Path(json.loads(out.getvalue())["paths"]["run"])


def of_test(run_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The run's test images, uint8, their labels, and its probabilities, float64."""
    record = json.loads((run_dir / "run.json").read_text())
    with np.load(run_dir / "predictions/test.npz") as held:
        said, labels = reference.softmax(held["logits"]), held["labels"]
    return np.asarray(datasets.load(record["config"]["data"]).test.images), labels, said


def asked(path: Path, images: np.ndarray) -> np.ndarray:
    """What a file says of images, by its runtime."""
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        network, found = Interpreter(str(path)), []
        network.allocate_tensors()
        (given,), (output,) = network.get_input_details(), network.get_output_details()
        assert given["dtype"] is np.uint8 and output["dtype"] is np.float32
        for image in images:
            network.set_tensor(given["index"], image[None])
            network.invoke()
            found.append(network.get_tensor(output["index"])[0])
        return np.array(found)
    if path.suffix == ".onnx":
        import onnxruntime

        network = onnxruntime.InferenceSession(path)
        blocks = images[:, None] if "dynamic" in path.name else [images]  # whose ranges are of a block
        return np.concatenate([network.run(["probabilities"], {"image": block})[0] for block in blocks])
    import tensorflow as tf

    return tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(images))["probabilities"].numpy()


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_the_run_said(export, run_dir, name):
    images, labels, said = of_test(run_dir)
    (told,) = (
        each for each in json.loads((export / "run.json").read_text())["results"]["exports"] if each["file"] == name
    )
    found = asked(export / name, images)
    assert np.abs(found - said).max() <= MOST.get(told["quantize"], 1e-5), name
    parity = told["parity"]
    assert parity["accuracy_before"] == (said.argmax(1) == labels).mean() and parity["count"] == len(labels) == 60
    assert parity["accuracy"] == (found.argmax(1) == labels).mean()
    assert (
        parity["agreement"]
        == (found.argmax(1) == said.argmax(1)).mean()
        >= (0.8 if told["quantize"] == "int8" else 0.95)
    )
    assert parity["largest_difference"] == pytest.approx(np.abs(found - said).max(), rel=0.05, abs=2e-6)
    lost = ((said.argmax(1) == labels) & (found.argmax(1) != labels)).sum()
    assert parity["lost"] == lost and parity["change"]["low"] <= parity["change"]["gain"] <= parity["change"]["high"]
    assert told["latency"]["one_thread"]["median"] <= told["latency"]["one_thread"]["p95"]
    size = sum(each.stat().st_size for each in [export / name, *(export / name).rglob("*")] if each.is_file())
    assert told["bytes"] == size and told["peak_memory"] > 10e6


def test_a_quantised_file_is_smaller_and_int8_all_through(export):
    from ai_edge_litert.interpreter import Interpreter

    sizes = [(export / name).stat().st_size for name in ("model.tflite", "model_float16.tflite")]
    assert sizes[1] < sizes[0]
    network = Interpreter(str(export / "model_int8.tflite"))
    network.allocate_tensors()
    kinds = {each["dtype"] for each in network.get_tensor_details() if each["name"] and len(each["shape"]) == 4}
    assert kinds <= {np.int8, np.uint8}  # no float image on the way
    (given,) = network.get_input_details()
    assert given["quantization"] == (1.0, 0)  # a number is a pixel


def test_the_saved_model_takes_images_of_any_size(export, run_dir):
    import tensorflow as tf

    images, _, _ = of_test(run_dir)
    large = np.repeat(np.repeat(images[:4], 2, axis=1), 2, axis=2)
    shown = tf.image.resize(large / np.float32(255), [8, 8]).numpy()
    record = json.loads((run_dir / "run.json").read_text())["normalisation"]
    shown = (shown - np.array(record["mean"], np.float32)) / np.array(record["std"], np.float32)
    said = reference.softmax(reference.logits(run_dir, "best", shown))
    np.testing.assert_allclose(asked(export / "saved_model", large), said, atol=1e-5)


def test_a_file_says_what_it_is_to_others_too(export, run_dir):
    import onnxruntime

    with zipfile.ZipFile(export / "model_int8.tflite") as inside:  # as phones' libraries read it
        assert inside.read("labels.txt").decode().split() == list(pictures.CLASSES)
    told = json.loads(onnxruntime.InferenceSession(export / "model.onnx").get_modelmeta().custom_metadata_map["kdrun"])
    assert told["class_names"] == list(pictures.CLASSES) and told["input"] == [SIDE, SIDE, 3]
    assert told["run"] == json.loads((run_dir / "run.json").read_text())["fingerprint"]
    assert (export / "labels.txt").read_text() == (export / "saved_model/assets.extra/labels.txt").read_text()
    assert facts.read(export / "saved_model")["input"] == [None, None, 3]


def test_images_that_are_seen_otherwise_are_named(export, run_dir):
    images, labels, said = of_test(run_dir)
    names = datasets.whole(json.loads((run_dir / "run.json").read_text())["config"]["data"]).names[1]
    expected = []
    for name in sorted(FILES, key=list(FILES).index):
        found = asked(export / name, images).argmax(1)
        for place in np.flatnonzero(found != said.argmax(1)):
            change = "lost" if said[place].argmax() == labels[place] else "won" if found[place] == labels[place] else ""
            expected.append((name, names[place], change))
    with (export / "changed.csv").open(newline="") as file:
        rows = [(row["file"], row["image"], row["change"]) for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(expected)


def test_the_model_card_has_a_header_and_code_that_runs(export, tmp_path, run_dir):
    card = (export / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    held = yaml.safe_load(header)
    record = json.loads((run_dir / "run.json").read_text())
    assert held["license"] is None and held["dataset_sha256"] == record["dataset_sha256"] and held["seed"] == 3
    assert set(held["metrics"]) == set(FILES)
    images, _, said = of_test(run_dir)
    Image.fromarray(images[0]).save(export / "picture.png")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == len(FILES)
    try:
        for block in [each for each in blocks if "int8" in each or "model.onnx" in each or "saved_model" in each]:
            assert len(block.splitlines()) <= 14
            ended = subprocess.run([sys.executable, "-c", block], cwd=export, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
            assert ended.stdout.split()[0] == pictures.CLASSES[said[0].argmax()]
    finally:
        (export / "picture.png").unlink()


def test_two_exports_of_a_run_at_once_give_the_same_bytes(folder, export, run_dir):
    words = ["stage=export", f"run={run_dir}", f"outputs={folder / 'twice'}", *ALL]
    both = [Kdrun(words, folder) for _ in range(2)]
    assert [each.wait(300) for each in both] == [0, 0], [each.said() for each in both]
    first, second = (folder / "twice/export").iterdir()
    for other in (first, second):
        for path in sorted(path for name in FILES for path in [export / name, *(export / name).rglob("*")]):
            if path.is_file():
                assert (other / path.relative_to(export)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["model.tflite", "model_float16.tflite"])
def test_a_litert_file_teaches(folder, export, run_dir, name):
    given = [*TINY, f"data.path={folder / 'digits'}", f"data.store={folder / 's'}", f"teacher.file={export / name}"]
    given += ["model@student.model=mlp", "student.model.hidden_units=[8]", "epochs=1"]
    taught = answer(folder, "stage=distill", *given)
    images, _, _ = of_test(run_dir)
    told = json.loads((taught / "run.json").read_text())["results"]["test"]["best"]["teacher_agreement"]
    with np.load(taught / "predictions/test.npz") as held:
        assert told == pytest.approx((asked(export / name, images).argmax(1) == held["logits"].argmax(1)).mean())


def refused(folder: Path, capfd, *words: str) -> str:
    """The one line of a command that is refused before anything is made."""
    capfd.readouterr()
    before = sorted(folder.rglob("*"))
    assert main([*words, f"outputs={folder / 'outputs'}"]) == 2
    said = capfd.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and sorted(folder.rglob("*")) == before
    return said


def test_what_cannot_be_exported_is_refused(folder, run_dir, capfd, monkeypatch):
    ask = lambda *words: refused(folder, capfd, "stage=export", f"run={run_dir}", *words)  # noqa: E731
    assert "export.format=[]" in ask("export.format=[]")
    assert "saved_model has none of these" in ask("export.format=[saved_model]", "export.quantize=[int8]")
    assert "export.format must be" in ask("export.format=[torch]")
    assert "data.path" in ask("data.path=x") and "export.most_loss must be" in ask("export.most_loss=-1")
    said = refused(folder, capfd, "stage=teacher", *TINY, f"data.path={folder / 'digits'}", "export.format=[litert]")
    assert "is for stage export, pipeline" in said and "kdrun stage=export run=" in said
    assert "nowhere" in refused(folder, capfd, "stage=export", "run=nowhere")

    def missing(name: str) -> str:
        raise formats.PackageNotFoundError(name)

    monkeypatch.setattr(formats, "version", missing)  # of packages that are not installed
    assert ask("export.format=[litert]").endswith("pip install 'kdrun[litert]'")
    assert ask("export.format=[onnx]").endswith("pip install 'kdrun[onnx]'")
    said = refused(folder, capfd, *TINY, f"data.path={folder / 'digits'}", "export.format=[onnx]")
    assert said.endswith("pip install 'kdrun[onnx]'")  # a study, before it is trained


ODD = '''
import os

import tensorflow as tf

from kdrun.registry import register


@register("model", "odd")
def odd(inputs, num_classes, *, added: float = 0.0, scale: float = 1.0):
    """A network that is another one where it is converted, and whose embedding has one number that is far larger."""
    from tf_keras import layers

    x = layers.Flatten()(inputs)
    x = layers.Dense(8, activation="relu", name="embedding")(x)
    x = layers.Dense(num_classes)(x)
    if os.environ.get("PYTHONHASHSEED") == "0":
        x = layers.Lambda(lambda y: y + added * tf.range(num_classes, dtype=tf.float32))(x)
    far = layers.Lambda(lambda y: scale * tf.reduce_sum(y, axis=1, keepdims=True))(inputs[:, :, 0, 0])
    return layers.Lambda(lambda y: (y[0] + y[1]) - y[1])([x, far])
'''


@pytest.fixture(scope="module")
def odd(folder):
    (folder / "odd.py").write_text(ODD)
    return [f"plugins=[{folder / 'odd.py'}]", "model@student.model=odd"]


def test_a_float_file_that_is_another_network_fails_and_leaves_nothing(folder, odd, capfd):
    words = ["stage=student", *TINY, *odd[:1], f"data.path={folder / 'digits'}", f"data.store={folder / 's'}"]
    run = answer(folder, *words, odd[1], "student.model.added=0.01", "student.model.scale=0.0")
    capfd.readouterr()
    given = ["stage=export", f"run={run}", f"outputs={folder / 'wrong'}", odd[0], "export.format=[litert]"]
    assert main([*given, "export.quantize=[none]"]) == 1
    said = capfd.readouterr().err
    assert "model.tflite: its probabilities differ" in said and "Traceback" not in said
    (made,) = (folder / "wrong/export").iterdir()
    assert json.loads((made / "run.json").read_text())["status"] == "failed"
    assert not [path for path in made.rglob("*") if path.suffix == ".tflite" or path.name == "README.md"]


def test_a_quantised_file_that_loses_more_than_it_may_is_not_kept(folder, odd, capfd):
    words = ["stage=student", *TINY, *odd[:1], f"data.path={folder / 'digits'}", f"data.store={folder / 's'}"]
    run = answer(folder, *words, odd[1], "student.model.added=0.0", "student.model.scale=1e5")
    given = ["stage=export", f"run={run}", odd[0], "export.format=[litert]", "export.quantize=[none,int8]"]
    export = answer(folder, *given)
    kept, lossy = json.loads((export / "run.json").read_text())["results"]["exports"]
    lost = -100 * lossy["parity"]["change"]["gain"]
    assert kept["parity"]["agreement"] >= 0.95 and lost > 10  # a step of int8 is larger than all logits
    assert lossy["parity"]["mcnemar_p"] < 0.1 and lossy["parity"]["change"]["high"] < 0
    capfd.readouterr()
    assert main([*given, f"outputs={folder / 'lossy'}", "export.most_loss=5"]) == 1
    said = capfd.readouterr().err
    assert f"model_int8.tflite loses {lost:.2f} points" in said and "export.most_loss=5" in said
    (made,) = (folder / "lossy/export").iterdir()
    assert (made / "model.tflite").exists() and not (made / "model_int8.tflite").exists()


def exists(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_half_file_and_goes_on(folder, run_dir, export):
    words = ["stage=export", f"run={run_dir}", f"outputs={folder / 'killed'}", *ALL]
    for when in (".*.saved_model/variables", "saved_model", ".*.model_int8.tflite"):
        command = Kdrun([*words, "resume=auto"], folder)
        assert command.wait_until(partial(exists, folder / "killed/export", f"*/{when}"), 200), command.said()
        command.signal(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
        (made,) = (folder / "killed/export").iterdir()
        for name in FILES:  # what has its name is whole
            if (made / name).exists():
                facts.read(made / name)
        assert not (made / "README.md").exists()
    assert main([*words, "resume=auto"]) == 0
    (made,) = (folder / "killed/export").iterdir()
    assert {path.name for path in made.iterdir() if not path.name.startswith(".")} == {
        path.name for path in export.iterdir() if not path.name.startswith(".")
    }
    assert not [path for path in made.rglob(".*") if path.name not in (".hydra", ".lock")]
    assert (made / "model_int8.tflite").read_bytes() == (export / "model_int8.tflite").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["100k", "180k"])
def test_a_full_disk_is_said_and_leaves_nothing(folder, run_dir, tmp_path, size):
    if os.system(f"mount -t tmpfs -o size={size} tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("needs a disk of its own")
    try:
        command = Kdrun(["stage=export", f"run={run_dir}", f"outputs={tmp_path}", *ALL], folder)
        assert command.wait() == 1
        assert "the disk is full" in command.said() and "Traceback" not in command.said()
        (made,) = (tmp_path / "export").iterdir()
        for name in filter(lambda name: (made / name).exists(), FILES):
            facts.read(made / name)
    finally:
        os.system(f"umount {tmp_path}")


def test_a_run_of_an_older_kdrun_is_exported(folder, run_dir):
    """Of before class names, the images' own size and what made a run were recorded."""
    older = folder / "older"
    (older / "checkpoints").mkdir(parents=True)
    record = json.loads((run_dir / "run.json").read_text())
    for key in ("class_names", "raw_shape", "kdrun", "files"):
        record.pop(key)
    for name in ("best", "last"):
        path = older / f"checkpoints/{name}.weights.h5"
        path.write_bytes((run_dir / f"checkpoints/{name}.weights.h5").read_bytes())
    files = {
        f"checkpoints/{name}.weights.h5": digest(older / f"checkpoints/{name}.weights.h5") for name in ("best", "last")
    }
    (older / "run.json").write_text(json.dumps(manifest.sealed({**record, "files": files})))
    export = answer(folder, "stage=export", f"run={older}", "export.format=[litert]")
    images, _, said = of_test(run_dir)
    np.testing.assert_allclose(asked(export / "model.tflite", images), said, atol=1e-5)
    assert (export / "labels.txt").read_text().split() == [str(number) for number in range(10)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_study_exports_its_best_students_and_sets_them_beside_each_other(folder, run_dir):
    given = [*TINY, f"data.path={folder / 'digits'}", f"data.store={folder / 's'}", "model@teacher.model=mlp"]
    given += [
        "model@student.model=mlp",
        "student.model.hidden_units=[8]",
        "teacher.model.hidden_units=[32]",
        "alpha=0.5",
    ]
    study = answer(folder, *given, "seeds=2", "export.format=[litert]")
    record = json.loads((study / "run.json").read_text())
    rows = record["results"]["exports"]
    kinds = [(row["kind"], row["quantize"]) for row in rows]
    assert kinds == [("teacher", "none"), *((kind, way) for kind in ("student", "distill") for way in ("none", "int8"))]
    of_kind: dict[str, list] = {"student": [], "distill": []}
    for row in record["results"]["runs"][1:]:
        validation = json.loads((Path(row["run"]) / "run.json").read_text())["results"]["validation"]["best"]
        of_kind[row["stage"]].append((-validation["accuracy"], validation["cross_entropy"], row["run"]))
    for kind, found in of_kind.items():
        assert {row["run"] for row in rows if row["kind"] == kind} == {min(found)[2]}
    floats = {row["kind"]: row for row in rows if row["quantize"] == "none"}
    for kind in ("student", "distill"):
        test = json.loads((Path(floats[kind]["run"]) / "run.json").read_text())["results"]["test"]["best"]
        assert floats[kind]["accuracy"] == pytest.approx(test["accuracy"])
    assert any("In int8 (model_int8.tflite" in note for note in record["results"]["notes"])
    page = (study / "report.html").read_text()
    assert "Exported files" in page and 'id="devices"' in page and (study / "figures/devices.png").exists()
    # a study, a sweep's folder, and the comparison of both name their best student, too
    best = min(of_kind["student"] + of_kind["distill"])[2]
    export = answer(folder, "stage=export", f"run={study}", "export.format=[saved_model]")
    assert json.loads((export / "run.json").read_text())["exported"] == best
    compared = answer(folder, "stage=compare", f"runs={study}")
    assert json.loads((compared / "run.json").read_text())["results"]["exports"] == rows
    export = answer(folder, "stage=export", f"run={compared}", "export.format=[saved_model]")
    assert json.loads((export / "run.json").read_text())["exported"] == best
