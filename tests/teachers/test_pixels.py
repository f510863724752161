"""What a network from elsewhere is given, against a float64 reference; and what a file says of it, or does not."""

import numpy as np
import pytest

from kdrun.errors import InputError
from kdrun.teachers import pixels
from kdrun.teachers.pixels import Declared

ASKED = {"size": None, "channels": None, "layout": None, "scale": None, "mean": 0.0, "std": 1.0}


def resolved(shape, dtype="float32", scales=False, **asked):
    return pixels.resolved({**ASKED, **asked}, Declared(shape, dtype, scales))


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """One image [height, width, channels] resized, pixel by pixel: pixels' centres are at halves."""
    height, width, channels = image.shape
    found = np.zeros((size, size, channels))
    for row in range(size):
        for column in range(size):
            y, x = (row + 0.5) * height / size - 0.5, (column + 0.5) * width / size - 0.5
            for dy in (0, 1):
                for dx in (0, 1):
                    at_y, at_x = int(np.floor(y)) + dy, int(np.floor(x)) + dx
                    weight = (1 - abs(y - at_y)) * (1 - abs(x - at_x))
                    found[row, column] += weight * image[np.clip(at_y, 0, height - 1), np.clip(at_x, 0, width - 1)]
    return found


@pytest.mark.parametrize("size", [5, 8, 13, 20])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pixels_are_resized_scaled_and_normalised(size, layout, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), np.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    shown = pixels.Input(size, channels, layout, 255.0, mean, std, "float32")
    expected = np.stack([bilinear(image, size) for image in images.astype(np.float64)])
    expected = expected[..., ::-1] if channels == "bgr" else expected
    expected = (expected / 255 - np.array(mean)) / np.array(std)
    expected = expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected
    found = pixels.prepare(images, shown)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_grey_and_colour_become_each_other():
    grey, colour = (np.random.default_rng(0).integers(0, 256, (2, 4, 4, c), np.uint8) for c in (1, 3))
    of_grey = pixels.prepare(grey, pixels.Input(4, "rgb", "NHWC", 1.0, [0.0] * 3, [1.0] * 3, "float32"))
    assert (of_grey == grey).all() and of_grey.shape[3] == 3
    of_colour = pixels.prepare(colour, pixels.Input(4, "grey", "NHW", 1.0, [0.0], [1.0], "float32"))
    np.testing.assert_allclose(of_colour, colour @ np.array([0.299, 0.587, 0.114]), atol=1e-4)


def test_whole_numbers_are_pixels_as_they_are():
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    shown = resolved((None, 4, 4, 3), "uint8")
    assert shown.scale == 1
    assert (pixels.prepare(images, shown) == images).all() and pixels.prepare(images, shown).dtype == np.uint8


READ = {
    "channels last": (((None, 32, 32, 3),), {}, (32, "rgb", "NHWC", 255)),
    "channels first": (((1, 3, 32, 32),), {}, (32, "rgb", "NCHW", 255)),
    "grey": (((None, 28, 28, 1),), {}, (28, "grey", "NHWC", 255)),
    "grey without an axis": (((None, 28, 28),), {}, (28, "grey", "NHW", 255)),
    "any size": (((None, 3, None, None),), {"size": 64}, (64, "rgb", "NCHW", 255)),
    "nothing but four axes": (
        ((None, None, None, None),),
        {"size": 64, "layout": "NHWC", "channels": "bgr"},
        (64, "bgr", "NHWC", 255),
    ),
    "images of three pixels": (((None, 3, 3, 3),), {"layout": "NCHW"}, (3, "rgb", "NCHW", 255)),
    "it scales pixels itself": (((None, 32, 32, 3), "float32", True), {}, (32, "rgb", "NHWC", 1)),
    "it is said how": (((None, 32, 32, 3), "float32", True), {"scale": 127.5}, (32, "rgb", "NHWC", 127.5)),
}


@pytest.mark.parametrize(("declared", "asked", "expected"), READ.values(), ids=READ)
def test_the_input_is_read_from_the_file(declared, asked, expected):
    assert resolved(*declared, **asked)[:4] == expected


MISSING = {
    "no layout": (((None, 3, 3, 3),), {}, "teacher.input.layout"),
    "no channels": (((None, 8, 8, None),), {"layout": "NHWC"}, "teacher.input.channels=rgb"),
    "no size": (((None, None, None, 3),), {}, "teacher.input.size=224"),
    "not square": (((None, 8, 10, 3),), {}, "[any, 8, 10, 3]"),
    "other channels": (((None, 8, 8, 3),), {"channels": "grey", "layout": "NHWC"}, "8x8, grey"),
    "no images": (((None, 64),), {}, "[any, 64]"),
    "four channels": (((None, 8, 8, 4),), {"layout": "NHWC"}, "4 channels"),
    "a scale for whole numbers": (((None, 8, 8, 3), "uint8"), {"scale": 255.0}, "pixels as they are"),
    "three means for grey": (((None, 8, 8, 1),), {"mean": [0.1, 0.2, 0.3]}, "teacher.input.mean has 3 numbers"),
}


@pytest.mark.parametrize(("declared", "asked", "said"), MISSING.values(), ids=MISSING)
def test_what_the_file_does_not_say_is_named(declared, asked, said):
    with pytest.raises(InputError) as raised:
        resolved(*declared, **asked)
    assert said in str(raised.value)
