"""What augmentation makes of images, against Python's own numbers; and that nothing but (seed, index, view) decides."""

import augmented
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.data.augmentation import NONE, Augmentation, of  # noqa: E402
from kdrun.models import augmentation  # noqa: E402
from kdrun.models.augmentation import augment, boxes, cut_out, random_numbers, shifted  # noqa: E402

COLOURS = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.7, "hue": 0.2}
ALL = Augmentation(2, True, 0.2, 0.4, 0.4, 0.4, 0.1, cutout=5.0, seed=7)


def images_of(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def int32(*values):
    return np.array(values, np.int32)


def compiled(how: Augmentation):
    return tf.function(lambda images, indices, views: augment(images, indices, views, how))


def views_of(images, how: Augmentation, indices=None, views=None) -> np.ndarray:
    """Each image in a view of its own, in one compiled call."""
    everyone = np.arange(len(images), dtype=np.int32)
    given = (everyone if indices is None else indices, everyone + 10 if views is None else views)
    return compiled(how)(*map(tf.constant, (images, *given))).numpy()


# Views of jitter and flip alone


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("jitter", "flip"), [(0, False), (0, True), (1, False), (2, False), (1, True), (2, True)])
def test_every_view_is_exactly_the_shifted_and_mirrored_image(channels, jitter, flip):
    count = (2 * jitter + 1) ** 2 * (1 + flip)
    images = images_of(count, 5, 6, channels)
    order = np.random.default_rng(0).permutation(count).astype(np.int32)
    pairs = zip(images, order, strict=True)
    expected = np.stack([augmented.shifted(image, int(view), jitter, flip) for image, view in pairs])
    how = Augmentation(jitter, flip)
    for function in (lambda *given: augment(*given, how), compiled(how)):
        result = function(tf.constant(images), tf.zeros(count, tf.int32), tf.constant(order))
        assert result.dtype == tf.uint8
        assert result.shape == images.shape
        assert result.numpy().tobytes() == expected.tobytes()


def test_views_are_all_different():
    image = images_of(1, 8, 8, 1)
    views = 2 * 25
    results = shifted(np.repeat(image, views, axis=0), np.arange(views, dtype=np.int32), 2, True).numpy()
    assert len({result.tobytes() for result in results}) == views


@pytest.mark.parametrize("how", [Augmentation(1, True), ALL], ids=["shifts", "all"])
def test_the_batch_size_may_be_unknown(how):
    number = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 6, 3], tf.uint8), number, number])
    def anyhow(images, indices, views):
        return augment(images, indices, views, how)

    images, views = images_of(7, 5, 6, 3), int32(0, 4, 8, 9, 13, 17, 2)
    assert anyhow(images, views, views).numpy().tobytes() == views_of(images, how, views, views).tobytes()


# Random numbers


@settings(deadline=None, max_examples=30)
@given(*[some.integers(0, 2**31 - 1)] * 3)
def test_an_images_random_numbers_are_those_of_tensorflows_own_stateless_operation(seed, index, view):
    found = random_numbers(seed, int32(index), int32(view), 32).numpy()[0]
    key, counter = np.array([seed], np.uint64), np.array([index << 32, view], np.uint64)
    expected = tf.raw_ops.StatelessRandomUniformV2(shape=[32], key=key, counter=counter, alg=1, dtype=tf.float32)
    assert found.tobytes() == expected.numpy().tobytes()
    assert found.tolist() == augmented.numbers(seed, index, view)


def test_images_and_views_have_numbers_that_have_nothing_to_do_with_each_other():
    index, view = map(np.ravel, np.meshgrid(np.arange(60, dtype=np.int32), np.arange(60, dtype=np.int32)))
    drawn = random_numbers(0, index, view, 32).numpy().astype(float)
    assert len({row.tobytes() for row in drawn}) == 3600
    bound = 5 / np.sqrt(3600)
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < bound * np.sqrt(1 / 12)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(32)).max() < bound
    grid = drawn.reshape(60, 60, 32)
    for one, next_ in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), next_.ravel())[0, 1]) < 5 / np.sqrt(one.size)


# Each operation, against its formula


def assert_rounded(found: np.ndarray, exact: np.ndarray) -> None:
    """Whole numbers are the nearest ones; float32 may take the other one of a tie."""
    assert found.dtype == np.uint8
    assert np.abs(found - exact).max() <= 0.5 + 2e-3
    assert np.ptp(exact) > 50  # what is compared is no blank


HOW = {
    "crop": Augmentation(resized_crop=0.2, seed=3),
    **{name: Augmentation(**{name: strength}, seed=4) for name, strength in COLOURS.items()},
    "strong colours": Augmentation(brightness=2.0, contrast=2.0, saturation=2.0, hue=0.5),
    "a square of pixels": Augmentation(cutout=4.0),
    "an odd one": Augmentation(cutout=5.0),
    "a part": Augmentation(cutout=0.3),
    "shifts of K views": Augmentation(jitter=2, flip=True, views=4),
    "all": ALL,
}
GREY = [name for name in HOW if name not in ("saturation", "hue", "strong colours", "all")]
CASES = [(name, 3) for name in HOW] + [(name, 1) for name in GREY]


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_a_view_is_what_the_formulas_say(name, channels):
    images, how = images_of(24, 9, 12, channels), HOW[name]
    found = views_of(images, how)
    assert found.shape == images.shape
    exact = np.stack([augmented.view(image, i, i + 10, how) for i, image in enumerate(images)])
    assert_rounded(found, exact)
    assert len({view.tobytes() for view in found - images}) > 12  # it did something, and not to all the same


@pytest.mark.parametrize(("height", "width"), [(28, 28), (9, 12), (1, 1), (40, 7), (7, 40), (224, 224)])
@pytest.mark.parametrize("smallest", [0.08, 0.9])
def test_crops_are_torchvisions(height, width, smallest):
    everyone = np.arange(400, dtype=np.int32)
    drawn = random_numbers(1, everyone, everyone, 32)
    found = np.stack([side.numpy() for side in boxes(drawn, height, width, smallest)], axis=1)
    expected = [augmented.box(augmented.numbers(1, i, i), height, width, smallest) for i in range(400)]
    assert np.mean(found == expected) > 0.999  # but for a side that is a tie
    top, left, rows, columns = found.T
    assert top.min() >= 0 and left.min() >= 0 and rows.min() >= 1 and columns.min() >= 1
    assert (top + rows).max() <= height and (left + columns).max() <= width
    if (height, width) == (224, 224):
        areas, ratios = rows * columns / (height * width), columns / rows
        assert smallest - 0.01 <= areas.min() < smallest + 0.02 and areas.max() <= 1
        assert 3 / 4 - 0.02 < ratios.min() < ratios.max() < 4 / 3 + 0.02
        assert {0, height} <= {*top, *(top + rows)} and {0, width} <= {*left, *(left + columns)}


@settings(deadline=None, max_examples=60)
@given(some.integers(1, 12), some.integers(1, 12), some.integers(1, 12), some.data())
def test_what_is_cut_out_is_one_square_around_a_pixel_of_the_image(height, width, side, data):
    row, column = (data.draw(some.integers(0, length - 1)) for length in (height, width))
    drawn = np.array([[(row + 0.5) / height, (column + 0.5) / width]], np.float32)
    found = cut_out(tf.ones([1, height, width, 3], tf.uint8), tf.constant(drawn), float(side)).numpy()[0]
    zeros = {tuple(place) for place in np.argwhere(found.max(axis=2) == 0).tolist()}
    rows, columns = (range(middle - side // 2, middle - side // 2 + side) for middle in (row, column))
    assert zeros == {(i, j) for i in rows for j in columns if 0 <= i < height and 0 <= j < width}
    assert (row, column) in zeros and (found.min(axis=2) == found.max(axis=2)).all()


# What is off does nothing; what is on, nothing to the others


def test_strength_zero_is_the_image_itself_bit_for_bit():
    images = images_of(6, 9, 12, 3)
    for how in (NONE, Augmentation(views=5), Augmentation(seed=3)):
        assert not how.is_drawn and how.view_count == 1
        assert views_of(images, how, views=np.zeros(6, np.int32)).tobytes() == images.tobytes()
    for name in COLOURS:
        assert views_of(images, Augmentation(**{name: 1e-9})).tobytes() == images.tobytes(), name


def test_an_operation_more_changes_nothing_of_what_others_draw():
    images, how = images_of(6, 9, 12, 3), Augmentation(2, True, views=3)
    one = views_of(images, how)
    assert views_of(one, Augmentation(cutout=3.0)).tobytes() == views_of(images, how._replace(cutout=3.0)).tobytes()


def test_of_jitter_and_flip_k_of_the_many_are_drawn():
    """All of them occur, and equally often."""
    images, how = images_of(1, 8, 8, 1).repeat(5000, axis=0), Augmentation(1, True, views=5000)
    many = [augmented.shifted(images[0], view, 1, True).tobytes() for view in range(18)]
    found = [many.index(view.tobytes()) for view in views_of(images, how, np.zeros(5000, np.int32))]
    counts = np.bincount(found, minlength=18)
    assert np.abs(counts - 5000 / 18).max() < 5 * np.sqrt(5000 / 18)


# Statelessness


def test_a_view_depends_on_seed_index_and_view_and_on_nothing_else():
    images, function = images_of(9, 16, 16, 3), compiled(ALL)
    indices, views = int32(5, 0, 7, 5, 5, 2**31 - 1, 0, 1, 2), int32(0, 1, 2, 1, 2**31 - 1, 0, 0, 0, 0)
    whole = function(images, indices, views).numpy()
    order = np.random.default_rng(0).permutation(9)
    assert function(images[order], indices[order], views[order]).numpy().tobytes() == whole[order].tobytes()
    for i in range(9):
        alone = function(images[i : i + 1], indices[i : i + 1], views[i : i + 1]).numpy()
        assert alone.tobytes() == whole[i : i + 1].tobytes()
    same = images[:1].repeat(4, axis=0)
    others = views_of(same, ALL, int32(0, 0, 1, 1), int32(0, 1, 0, 1))
    other_seed = views_of(same, ALL._replace(seed=8), int32(0, 0, 1, 1), int32(0, 1, 0, 1))
    assert len({view.tobytes() for view in (*others, *other_seed)}) == 8


def test_views_are_counted():
    assert [Augmentation(j, f).view_count for j, f in ((0, False), (0, True), (1, False), (2, True))] == [1, 2, 9, 50]
    assert Augmentation(2, True, views=7).view_count == 7 and Augmentation(views=7).view_count == 1
    for on in ({"resized_crop": 0.5}, {"cutout": 3.0}, *({name: 0.1} for name in COLOURS)):
        how = Augmentation(2, True, **on)
        assert how.view_count == 2**31 and not how.is_finite
        assert how._replace(views=7).view_count == 7 and how._replace(views=7).is_finite


def test_it_is_made_of_a_config():
    keys = {"jitter": 1, "flip": True, "resized_crop": 0.5, "colour": COLOURS, "cutout": 0.25, "views": 4, "seed": 9}
    assert of({"augment": keys}) == Augmentation(1, True, 0.5, 0.4, 0.5, 0.7, 0.2, 0.25, 4, 9)
    assert augmentation.cutout_side(0.25, 28, 32) == 7 and augmentation.cutout_side(9.0, 28, 32) == 9
