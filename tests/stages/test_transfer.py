"""Images that only the teacher labels, in a folder or a .npz, through the command line, against the formula."""

from pathlib import Path

import numpy as np
import pictures
import pytest
import reference
from held import bits
from made import done, lines
from PIL import Image

from kdrun.cli.main import main
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

from kdrun.models import build as models  # noqa: E402

LABELLED, UNLABELLED, T, ALPHA, SEED = 48, 80, 3.0, 0.6, 5
STUDENT = {"name": "mlp", "hidden_units": [8], "input_dropout": 0.0, "hidden_dropout": 0.0, "max_norm": None}
KEYS = ["data.image_size=28", "data.validation_size=200", "data.test_size=50", f"data.train_size={LABELLED}"]
KEYS += ["measure_latency=false", "tensorboard.histograms=false", "optimizer=sgd", "model@teacher.model=mlp"]
KEYS += ["model@student.model=mlp", "teacher.model.hidden_units=[12]", "student.model.hidden_units=[8]", f"seed={SEED}"]
KEYS += ["epochs=1", "teacher.epochs=2", "teacher.batch_size=16"]
STEP = [*KEYS, f"distill.batch_size={LABELLED + UNLABELLED}", "student.batch_size=32", f"alpha={ALPHA}"]
STEP += [f"temperature={T}"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """With a teacher, which was trained before anybody thought of a transfer set."""
    made = tmp_path_factory.mktemp("transfer")
    assert main([*KEYS, "stage=teacher", f"outputs={made}"]) == 0
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Of MNIST's end, whose labels nobody has asked for."""
    x, _ = reference.split("train", 59000, UNLABELLED)
    return np.round(255 * x).astype(np.uint8)


@pytest.fixture(scope="module")
def archive(images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "more.npz"
    np.savez(path, images=images)
    return path


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory) -> Path:
    """In the archive's order, in folders that are no classes, with what is no picture."""
    top = tmp_path_factory.mktemp("folder")
    for place, image in enumerate(images):
        (top / f"{place // 30}").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(top / f"{place // 30}" / f"{place:03}.png")
    (top / "notes.txt").write_text("from the attic")
    return top


def test_labels_count_where_there_are_some_and_the_teacher_everywhere(outputs, archive, folder, images):
    command = [*STEP, "stage=distill", "teacher.run=auto"]
    found = {
        "kept": done(outputs, *command, f"data.transfer={archive}"),
        "live": done(outputs, *command, f"data.transfer={archive}", "teacher.cache=off", "student.normalise=dataset"),
        "folder": done(outputs, *command, f"data.transfer={folder}", f"data.transfer_store={outputs}/pictures"),
        "disk": done(
            outputs,
            *command,
            f"data.transfer={folder}",
            f"data.transfer_store={outputs}/pictures",
            "data.on_device=off",
        ),
    }
    (teacher,) = (path.parent for path in outputs.glob("teacher/*/run.json"))
    x, labels = reference.split("train", 200, LABELLED)
    everything = np.concatenate([x, images.astype(np.float32) / 255])
    v, net = reference.logits(teacher, "best", everything), models.build(STUDENT, (28, 28, 1), 10, SEED, "float32")
    for name, run_dir in found.items():
        normalised = (everything - x.mean()) / x.std() if name == "live" else everything  # as the labelled ones are
        z = net(normalised).numpy()
        of_labels, of_teacher = reference.cross_entropy(z[:LABELLED], labels), T**2 * reference.divergence(v, z, T)
        expected = {
            **{"cross_entropy": of_labels, "kd": of_teacher, "loss": (1 - ALPHA) * of_labels + ALPHA * of_teacher},
            "accuracy": np.mean(z[:LABELLED].argmax(axis=1) == labels),
        }
        said = lines(run_dir)[-1]
        assert {name: said[name] for name in expected} == pytest.approx(expected, rel=2e-5)
        assert reference.record(run_dir)["transfer"]["images"] == UNLABELLED
    assert bits(found["kept"]) == bits(found["folder"]) == bits(found["disk"])
    records = [reference.record(found[name]) for name in ("kept", "folder")]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]  # what it holds, not what it is in


def test_the_student_alone_takes_as_many_steps(outputs, archive):
    transfer = f"data.transfer={archive}"
    alone = reference.record(done(outputs, *STEP, "stage=student", transfer))
    smoothed = done(outputs, *STEP, "stage=distill", transfer, "objective=label_smoothing", "distill.batch_size=32")
    without = reference.record(done(outputs, *STEP, "stage=student"))
    assert alone["results"]["steps"] == (LABELLED + UNLABELLED) // 32 and without["results"]["steps"] == 2
    assert reference.record(smoothed)["results"]["steps"] == alone["results"]["steps"]  # it learns from the labelled
    assert alone["dataset_sha256"] == without["dataset_sha256"] and alone["fingerprint"] != without["fingerprint"]


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([*KEYS, *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("kdrun: ")
    return said


def test_what_needs_labels_of_all_is_refused(outputs, archive, capsys):
    common = ["stage=distill", f"data.transfer={archive}", "distill.batch_size=16", f"outputs={outputs}"]
    assert "objective=dkd looks at every image's label" in refused(capsys, *common, "objective=dkd")
    assert "teacher.shuffle=within_class" in refused(capsys, *common, "teacher.shuffle=within_class")
    assert "specialists have no teacher" in refused(capsys, "stage=specialists", *common[1:2], f"outputs={outputs}")


def test_what_is_no_transfer_set_is_refused(tmp_path, archive, capsys):
    def save(name: str, **arrays) -> Path:
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "one.png").write_bytes(b"\x89PNG and then nothing")
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    grey = np.zeros((3, 28, 28), np.uint8)
    for path, said in {
        tmp_path / "nowhere": "does not exist",
        tmp_path / "empty": "holds no pictures",
        tmp_path / "broken": "1 of 1 pictures cannot be read",
        text: "not a readable .npz file",
        save("float.npz", images=grey / 255): "it must be uint8 ['n', 28, 28, 1]",
        save("size.npz", images=grey[:, :14]): "uint8 [3, 14, 28]; it must be",
        save("colour.npz", images=np.zeros((3, 28, 28, 3), np.uint8)): "as the labelled images are",
        save("none.npz", images=grey[:0]): "uint8 [0, 28, 28]",
        save("two.npz", a=grey, b=grey): "It must hold one array of images",
    }.items():
        place = [f"outputs={tmp_path}/made", f"data.transfer={path}", f"data.transfer_store={tmp_path}/store"]
        assert said in refused(capsys, "stage=student", "student.batch_size=16", *place), path
        assert not (tmp_path / "made").exists()


def test_test_images_among_them_are_named(tmp_path, capsys):
    test, _ = reference.split("test", 0, test=50)
    np.savez(tmp_path / "leak.npz", images=np.round(255 * test[:7]).astype(np.uint8))
    pictures.forget()
    assert main([*KEYS, "stage=data", f"data.transfer={tmp_path}/leak.npz", f"outputs={tmp_path}"]) == 0
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "7 test images are in data.transfer, too: image 0, image 1, image 2 and 4 more" in said
    assert "7 images without labels" in said
