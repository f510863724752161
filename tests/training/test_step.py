"""What the first step of a run minimises, through the command line, against the formula in float64.

Runs of one step on one batch: the training line of metrics.jsonl is then what the initial student loses on these
images. Student and teachers drop units: the student in training mode, by its own generator; the teachers, whose best
epoch is not their last, in inference mode, wherever they are asked.
"""

from pathlib import Path

import augmented
import numpy as np
import pytest
import reference
from held import bits
from made import done, lines

from kdrun.cli.main import main
from kdrun.registry import register
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.data import batches, mixing  # noqa: E402
from kdrun.data.augmentation import Augmentation  # noqa: E402
from kdrun.models import build as models  # noqa: E402
from kdrun.training import execute  # noqa: E402

SEED, N, T, ALPHA = 5, 64, 3.0, 0.6
SIZES = {"validation": 200, "train": N}
COMMON = ["data.image_size=28", "data.validation_size=200", "data.test_size=50", "measure_latency=false"]
COMMON += ["tensorboard.histograms=false", "optimizer=sgd", "model@teacher.model=mlp", "model@student.model=mlp"]
COMMON += ["teacher.model.hidden_units=[12]", "teacher.model.hidden_dropout=0.5"]
STUDENT = {"name": "mlp", "hidden_units": [8], "input_dropout": 0.2, "hidden_dropout": 0.5, "max_norm": None}
COMMON += ["student.model.hidden_units=[8]", "student.model.input_dropout=0.2", "student.model.hidden_dropout=0.5"]
STEP = [*COMMON, f"data.train_size={N}", f"batch_size={N}", "epochs=1", f"temperature={T}", f"alpha={ALPHA}"]
STEP += [f"seed={SEED}"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("step")


@pytest.fixture(scope="module")
def teachers(outputs) -> list[Path]:
    """Two, under a rate that rises until it harms."""
    command = ["-m", *COMMON, "stage=teacher", "data.train_size=1280", "batch_size=32", "epochs=2", "seed=1,2"]
    command += ["optimizer.learning_rate=2", "optimizer.warmup_epochs=2", "sweep=teachers", f"outputs={outputs}"]
    assert main(command) == 0
    found = sorted(path.parent for path in outputs.glob("sweeps/teachers/*/run.json"))
    for teacher in found:
        assert reference.record(teacher)["results"]["validation"]["best"]["epoch"] == 1
    return found


def taught_by(teacher: Path) -> str:
    """The override; a sweep's folders have an = in their names."""
    return f"teacher.run='{teacher}'"


def first_batch(views: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices, images, labels and views of the first step."""
    (indices,), (chosen,) = batches.stream(SEED, 0, 1, N, N, views)
    images, labels = reference.split("train", **SIZES)
    return indices, images[indices], labels[indices], chosen


def student(images: np.ndarray, seed: int = SEED, training: bool = True) -> np.ndarray:
    """Logits of the initial student in the first step."""
    return models.build(STUDENT, (28, 28, 1), 10, seed, "float32")(images, training=training).numpy()


def kd(teacher: np.ndarray, z: np.ndarray) -> float:
    return T**2 * reference.divergence(teacher, z, T)


def assert_loss(found: dict, z: np.ndarray, labels: np.ndarray, teacher: np.ndarray, alpha: float = ALPHA) -> None:
    """A training line of kd."""
    expected = {"cross_entropy": reference.cross_entropy(z, labels), "kd": kd(teacher, z)}
    expected["loss"] = (1 - alpha) * expected["cross_entropy"] + alpha * expected["kd"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=2e-5)


def mean_of_two(one: np.ndarray, other: np.ndarray, share: float, temperature: float) -> np.ndarray:
    """Logits whose softened probabilities are the mean of two teachers', weighted."""
    mean = share * reference.softmax(one / temperature) + (1 - share) * reference.softmax(other / temperature)
    return temperature * np.log(mean)


def test_a_student_alone_drops_units(outputs):
    found = lines(done(outputs, *STEP, "stage=student"))[-1]
    _, images, labels, _ = first_batch()
    z = student(images)
    assert found["loss"] == pytest.approx(reference.cross_entropy(z, labels), rel=2e-5)
    assert found["accuracy"] == np.mean(z.argmax(axis=1) == labels)
    assert found["loss"] != pytest.approx(reference.cross_entropy(student(images, training=False), labels), rel=1e-2)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_teacher_with_dropout_is_asked_without(cache, outputs, teachers):
    """Kept or live; on training images, and for what is said of validation and test."""
    run_dir = done(outputs, *STEP, "stage=distill", taught_by(teachers[0]), f"teacher.cache={cache}")
    _, images, labels, _ = first_batch()
    assert_loss(lines(run_dir)[-1], student(images), labels, reference.logits(teachers[0], "best", images))
    assert_held_against(run_dir, lambda images: reference.logits(teachers[0], "best", images))


def assert_held_against(run_dir: Path, teacher) -> None:
    """Validation and test say how far the student is from a teacher, on the very images."""
    for split in ("validation", "test"):
        images, labels = reference.split(split, 200, test=50)
        expected = reference.measures(reference.logits(run_dir, "last", images), labels, teacher(images))
        found = reference.record(run_dir)["results"][split]["last"]
        assert found["teacher_kl"] == pytest.approx(expected["teacher_kl"], rel=1e-4)
        assert found["teacher_agreement"] == pytest.approx(expected["teacher_agreement"], abs=1.5 / len(labels))


def test_two_live_teachers_with_dropout_are_asked_without(outputs, teachers):
    command = ["teacher.run=teachers", "teacher.weights=[3,1]", "teacher.cache=off"]
    run_dir = done(outputs, *STEP, "stage=distill", *command)
    _, images, labels, _ = first_batch()
    both = [reference.logits(teacher, "best", images) for teacher in teachers]
    assert_loss(lines(run_dir)[-1], student(images), labels, mean_of_two(*both, 0.75, T))
    assert_held_against(
        run_dir, lambda images: mean_of_two(*(reference.logits(t, "best", images) for t in teachers), 0.75, 1.0)
    )


def shifted(images: np.ndarray, views: np.ndarray) -> np.ndarray:
    """By up to a pixel, rows first; what comes in is black."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.stack([p[v // 3 : v // 3 + 28, v % 3 : v % 3 + 28] for p, v in zip(padded, views, strict=True)])


@pytest.mark.parametrize("cache", ["on", "off"])
def test_shifted_images_are_shown_to_both_and_measured_is_on_unshifted_ones(cache, outputs, teachers):
    command = [taught_by(teachers[0]), f"teacher.cache={cache}", "data.augment.jitter=1"]
    run_dir = done(outputs, *STEP, "stage=distill", *command)
    _, images, labels, views = first_batch(views=9)
    assert len(set(views)) == 9
    images = shifted(images, views)
    assert_loss(lines(run_dir)[-1], student(images), labels, reference.logits(teachers[0], "best", images))
    assert_held_against(run_dir, lambda images: reference.logits(teachers[0], "best", images))


DRAWN = {"jitter": 1, "flip": True, "resized_crop": 0.4, "brightness": 0.5, "contrast": 0.5, "cutout": 9.0, "seed": 3}


@pytest.mark.parametrize(("cache", "k"), [("auto", 3), ("off", 3), ("auto", None)])
def test_drawn_views_are_shown_to_both_and_measured_is_on_the_images_themselves(cache, k, outputs, teachers):
    """Of three kept by auto, of three live, and of as many as there are, which are live."""
    keys = [f"{f'colour.{key}' if key.endswith('st') or key == 'brightness' else key}={v}" for key, v in DRAWN.items()]
    command = [taught_by(teachers[0]), f"teacher.cache={cache}", *(f"data.augment.{key}" for key in keys)]
    if k:
        command.append(f"data.augment.views={k}")
    run_dir = done(outputs, *STEP, "stage=distill", *command)
    asked = (run_dir / "kdrun.log").read_text().count("filled")
    assert asked == (1 if cache == "auto" and k else 0)
    indices, images, labels, views = first_batch(views=k or 2**31)
    assert len(set(views)) == (k or N)
    how = Augmentation(**DRAWN, views=k)
    pairs = zip(255 * images, indices, views, strict=True)
    shown = np.stack([np.round(augmented.view(image, int(i), int(v), how)) for image, i, v in pairs]) / 255
    assert_loss(lines(run_dir)[-1], student(shown), labels, reference.logits(teachers[0], "best", shown))
    assert_held_against(run_dir, lambda images: reference.logits(teachers[0], "best", images))


def halved(images: np.ndarray) -> np.ndarray:
    """At half the size, bilinearly: each pixel is the mean of four."""
    return images.reshape(len(images), 14, 2, 14, 2, 1).mean(axis=(2, 4))


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_teachers_see_the_students_very_pixels_each_in_its_own_way(cache, outputs, teachers):
    """And with its own normalisation: one at 28 pixels a side and one at 14 teach a student of 14."""
    small = [*STEP, "stage=teacher", "epochs=2", "batch_size=16", "teacher.image_size=14", "data.normalise=dataset"]
    teacher = done(outputs, *small, f"teacher.seed={len(cache)}")
    assert reference.record(teacher)["image_shape"] == [14, 14, 1]
    of_data = reference.split("train", **SIZES)[0].astype(np.float64)
    recorded = reference.record(teacher)["normalisation"]
    assert recorded["mean"] == pytest.approx([of_data.mean()]) and recorded["std"] == pytest.approx([of_data.std()])
    shown = ["data.augment.views=2", "data.augment.jitter=1", "data.augment.cutout=9"]
    command = [*STEP, "stage=distill", *shown, "student.image_size=14", f"teacher.cache={cache}"]
    command.append("student.normalise=[[0.25],[0.5]]")
    run_dir = done(outputs, *command, f"teacher.run=['{teachers[0]}','{teacher}']")
    assert reference.record(run_dir)["image_shape"] == [14, 14, 1]
    indices, images, labels, views = first_batch(views=2)
    how = Augmentation(1, cutout=9.0, views=2)
    pairs = zip(255 * images, indices, views, strict=True)
    seen = np.stack([augmented.view(image, int(i), int(v), how) for image, i, v in pairs]) / 255

    def of_its_own(images: np.ndarray) -> np.ndarray:
        return (halved(images) - of_data.mean()) / of_data.std()

    def of_student(images: np.ndarray) -> np.ndarray:
        return (halved(images) - 0.25) / 0.5

    def taught(images: np.ndarray, temperature: float) -> np.ndarray:
        logits = (reference.logits(t, "best", x) for t, x in ((teachers[0], images), (teacher, of_its_own(images))))
        return mean_of_two(*logits, 0.5, temperature)

    net = models.build(STUDENT, (14, 14, 1), 10, SEED, "float32")
    assert_loss(lines(run_dir)[-1], net(of_student(seen), training=True).numpy(), labels, taught(seen, T))
    images, labels = reference.split("test", 200, test=50)
    last = reference.logits(run_dir, "last", of_student(images))
    expected = reference.measures(last, labels, taught(images, 1.0))
    found = reference.record(run_dir)["results"]["test"]["last"]
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_several_steps_a_call_are_one_step_a_call(outputs, monkeypatch):
    command = [*STEP, "stage=student", "batch_size=8", "epochs=3", "data.augment.resized_crop=0.4"]
    found = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(execute, "_SECONDS_PER_CALL", seconds)
        found.append(bits(done(outputs, *command)))
    assert found[0] == found[1]


def test_mixed_images_are_as_bright_as_images(outputs, teachers):
    """Their shares sum to one; student and teacher see the same."""
    found = lines(done(outputs, *STEP, "stage=distill", taught_by(teachers[0]), "distill.mixup=1"))[-1]
    _, images, labels, _ = first_batch()
    (share,) = batches.shares(SEED, 0, 1, 1.0)
    assert 0.1 < share < 0.9
    mixed = share * images + (1 - share) * images[::-1]
    z, taught = student(mixed), kd(reference.logits(teachers[0], "best", mixed), student(mixed))
    of_labels = soft_cross_entropy(z, labels, share)
    expected = {"cross_entropy": of_labels, "kd": taught, "loss": (1 - ALPHA) * of_labels + ALPHA * taught}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=2e-5)


def soft_cross_entropy(z: np.ndarray, labels: np.ndarray, share: float, smoothing: float = 0.0) -> float:
    """Of images mixed with the ones opposite in the batch: of distributions over the classes, made one by one."""
    each = np.eye(10)[labels]
    soft = (1 - smoothing) * (share * each + (1 - share) * each[::-1]) + smoothing / 10
    return -np.mean(np.sum(soft * (z - np.logaddexp.reduce(z, axis=1, keepdims=True)), axis=1, dtype=float))


def test_a_box_of_another_image_brings_its_share_of_the_label(outputs):
    """Of a student alone, with labels smoothed."""
    keys = ["student.cutmix=1", "student.label_smoothing=0.2"]
    found = lines(done(outputs, *STEP, "stage=student", *keys))[-1]
    _, images, labels, _ = first_batch()
    ((own, *sides),) = mixing.mixes(SEED, 0, 1, 0.0, 1.0)
    top, bottom, left, right = (round(28 * side) for side in sides)
    assert own == 1 and bottom - top > 4 and right - left > 4
    cut = images.copy()
    cut[:, top:bottom, left:right] = images[::-1, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / 28**2
    assert found["loss"] == pytest.approx(soft_cross_entropy(student(cut), labels, share, 0.2), rel=2e-5)


def test_steps_are_of_one_way_of_mixing_or_the_other_by_their_number_alone():
    both = mixing.mixes(1, 0, 4000, 0.4, 1.0)
    boxed = both[:, 1:].any(axis=1)
    assert abs(boxed.mean() - 0.5) < 0.03
    assert (both[boxed, 0] == 1).all()
    assert (both[~boxed, 0] == batches.shares(1, 0, 4000, 0.4)[~boxed]).all()
    assert (mixing.mixes(1, 7, 5, 0.4, 1.0) == both[7:12]).all()  # whatever comes before
    assert not (mixing.mixes(2, 0, 50, 0.4, 1.0) == both[:50]).all()
    cut = mixing.mixes(1, 0, 4000, 0.0, 1.0)
    assert (cut[boxed] == both[boxed]).all() and cut[:, 1:].any(axis=1).mean() > 0.99
    heights, widths = cut[:, 2] - cut[:, 1], cut[:, 4] - cut[:, 3]
    whole = (cut[:, 1] > 0) & (cut[:, 2] < 1) & (cut[:, 3] > 0) & (cut[:, 4] < 1)
    np.testing.assert_allclose(heights[whole], widths[whole], atol=1e-6)
    # of the side s = sqrt(1 - u), u uniform, and a middle anywhere, s - s^2 / 4 is left on the average
    for sides in (heights, widths):
        assert sides.mean() == pytest.approx(2 / 3 - 1 / 8, abs=0.01)
    assert cut.min() >= 0 and cut.max() <= 1


def test_alpha_is_warmed_up(outputs, teachers):
    """In its first step, of one an epoch, it is a fourth."""
    found = lines(done(outputs, *STEP, "stage=distill", taught_by(teachers[0]), "alpha_warmup_epochs=4"))[-1]
    assert found["alpha"] == pytest.approx(ALPHA / 4)
    _, images, labels, _ = first_batch()
    assert_loss(found, student(images), labels, reference.logits(teachers[0], "best", images), ALPHA / 4)


def test_a_shuffled_teacher_gives_each_image_the_answer_that_the_permutation_says(outputs, teachers):
    found = lines(done(outputs, *STEP, "stage=distill", taught_by(teachers[0]), "teacher.shuffle=within_class"))[-1]
    indices, images, labels, _ = first_batch()
    everything, all_labels = reference.split("train", **SIZES)
    others = everything[batches.shuffled(SEED, all_labels, "within_class")[indices]]
    assert_loss(found, student(images), labels, reference.logits(teachers[0], "best", others))


def test_peers_drop_units_too(outputs):
    """The student hears its peer as it trains: with the dropout of its own generator."""
    found = lines(done(outputs, *STEP, "stage=mutual", f"alpha={ALPHA}", f"temperature={T}"))[-1]
    _, images, labels, _ = first_batch()
    assert_loss(found, student(images), labels, student(images, batches.relative_seed(SEED, 1)))


def test_the_classifier_that_simkd_takes_over_is_that_of_the_teachers_best_weights(outputs, teachers):
    run_dir = done(outputs, *STEP, "stage=distill", taught_by(teachers[0]), "objective=simkd")
    expected = reference.network(teachers[0], "best").get_layer("classifier").get_weights()
    for which in ("best", "last"):
        found = reference.network(run_dir, which).get_layer("classifier").get_weights()
        assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]


def test_features_beside_at_weight_zero_change_no_bit(outputs, teachers):
    """The student is then a network of several outputs: its dropout must go on as before."""
    command = [*STEP, "data.train_size=320", "epochs=2", "stage=distill", "teacher.cache=off"]
    command += [taught_by(teachers[0]), "optimizer.learning_rate=0.1"]
    alone = done(outputs, *command)
    features = ["objective=[kd,fitnet]", "objective.fitnet.weight=0", "objective.fitnet.layers=[embedding]"]
    beside = done(outputs, *command, *features, f"alpha={ALPHA}", f"temperature={T}")
    assert lines(beside)[-1]["fitnet"] > 0
    found, expected = bits(beside), bits(alone)
    assert {**found, "metrics.jsonl": b""} == {**expected, "metrics.jsonl": b""}


@register("objective", "witness")
def witness(batch):
    """Writes down what it is given at each step."""
    if not tf.executing_eagerly():
        seen = (batch.random_seed, batch.indices, batch.labels, batch.temperature)
        tf.numpy_function(lambda *given: SEEN.append(given), seen, [], stateful=True)
    return 0.0 * tf.reduce_mean(batch.logits)


SEEN: list[tuple] = []


def test_each_step_draws_by_a_seed_of_its_own(outputs, teachers, tmp_path):
    """As contrastive draws its negatives; and knows which images it sees."""
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective/witness.yaml").write_text(
        "# @package _global_\nobjective:\n  witness: {weight: 1.0, weight_end: null, warmup_epochs: 0.0}\n"
    )
    command = ["--config-dir", str(tmp_path), *STEP, "stage=distill", taught_by(teachers[0]), "objective=witness"]
    command += ["batch_size=32", "epochs=2", "temperature_end=1", "data.train_size=160"]
    drawn = {}
    for seed in (SEED, SEED + 1):
        SEEN.clear()
        done(outputs, *command, f"seed={seed}")
        drawn[seed] = [tuple(int(number) for number in random_seed) for random_seed, *_ in SEEN]
        indices, _ = batches.stream(seed, 0, 10, 32, 160, 1)
        assert np.array_equal([step[1] for step in SEEN], indices)
        assert np.array_equal([step[2] for step in SEEN], reference.split("train", 200, 160)[1][indices])
        np.testing.assert_allclose([step[3] for step in SEEN], T + (1 - T) * np.arange(10) / 9, rtol=1e-6)
    assert len({*drawn[SEED], *drawn[SEED + 1]}) == 20
