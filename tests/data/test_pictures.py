"""Pictures of every mode and format become the pixels that they stand for; damaged ones are named."""

import io

import numpy as np
import pictures as helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdrun.data import pictures

RANDOM = np.random.default_rng(5)
GREY = RANDOM.integers(0, 256, (6, 9), np.uint8)
COLOUR = RANDOM.integers(0, 256, (6, 9, 3), np.uint8)
ALPHA = RANDOM.integers(0, 256, (6, 9), np.uint8)
DEEP = RANDOM.integers(0, 65536, (6, 9)).astype(np.uint16)


def saved(picture: Image.Image, kind: str, **given) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **given)
    return file.getvalue()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255 if colour.ndim == 3 else alpha / 255
    return share * colour + (1 - share) * 255.0


def luma(colour: np.ndarray) -> np.ndarray:
    """ITU-R 601-2, as Pillow documents it."""
    return colour @ np.array([299, 587, 114]) / 1000


PALETTE = Image.fromarray(COLOUR).quantize(16)
TRUTH = {  # what is in a file, and the grey or colour that it stands for, by NumPy
    "grey PNG": (saved(Image.fromarray(GREY), "PNG"), GREY),
    "colour PNG": (saved(Image.fromarray(COLOUR), "PNG"), COLOUR),
    "colour BMP": (saved(Image.fromarray(COLOUR), "BMP"), COLOUR),
    "colour TIFF": (saved(Image.fromarray(COLOUR), "TIFF"), COLOUR),
    "colour WebP": (saved(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR),
    "black and white": (saved(Image.fromarray(GREY > 127), "PNG"), 255 * (GREY > 127)),
    "16 bits": (saved(Image.fromarray(DEEP), "PNG"), DEEP // 256),
    "16 bits TIFF": (saved(Image.fromarray(DEEP), "TIFF"), DEEP // 256),
    "palette": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "grey with alpha": (saved(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"), on_white(GREY, ALPHA)),
    "colour with alpha": (saved(Image.fromarray(np.dstack([COLOUR, ALPHA]), "RGBA"), "PNG"), on_white(COLOUR, ALPHA)),
    "CMYK": (saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), COLOUR),
    "the first of several": (
        saved(PALETTE, "GIF", save_all=True, append_images=[Image.fromarray(255 - COLOUR).quantize(16)]),
        np.asarray(PALETTE.convert("RGB")),
    ),
}


@pytest.mark.parametrize("kind", TRUTH)
def test_a_picture_of_any_mode_is_the_pixels_that_it_stands_for(kind):
    content, expected = TRUTH[kind]
    has_colour = expected.ndim == 3
    assert pictures.look(content) == (9, 6, has_colour)
    as_colour = expected if has_colour else np.repeat(expected[..., None], 3, axis=2)
    found = pictures.decode(content, 3)
    assert found.shape == (6, 9, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found, as_colour, atol=1)  # of blending, which rounds
    as_grey = luma(as_colour.astype(float))
    np.testing.assert_allclose(pictures.decode(content, 1)[..., 0], as_grey, atol=1.5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_turned_back(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(GREY), "PNG", exif=exif)
    mirrored = GREY[:, ::-1]
    expected = {
        **{1: GREY, 2: mirrored, 3: np.rot90(GREY, 2), 4: GREY[::-1]},
        **{5: GREY.T, 6: np.rot90(GREY, -1), 7: np.rot90(GREY.T, 2), 8: np.rot90(GREY)},
    }[orientation]
    assert np.array_equal(pictures.decode(content, 1)[..., 0], expected)
    look = pictures.look(content)
    assert (look.height, look.width) == expected.shape


@pytest.mark.parametrize(("resize", "wide", "tall"), [("stretch", 8, 8), ("crop", 8, 8), ("pad", 8, 4)])
def test_a_picture_becomes_a_square(resize, wide, tall):
    """Of a picture twice as wide as high, white, with a black quarter at its left."""
    picture = np.full((16, 32), 255, np.uint8)
    picture[:, :8] = 0
    found = pictures.decode(helper.png(picture), 1, 8, resize)[..., 0]
    assert found.shape == (8, 8)
    if resize == "pad":  # all of it, black above and below
        assert not found[:2].any() and not found[6:].any()
        assert not found[2:6, 0].any() and (found[2:6, 4:] == 255).all()
    elif resize == "crop":  # its middle
        assert (found[:, 1:] == 255).all()
    else:  # all of it
        assert not found[:, 0].any() and (found[:, 3:] == 255).all()


def test_a_large_jpeg_is_read_small():
    wave = (127 + 120 * np.sin(np.arange(640) / 60)).astype(np.uint8)
    content = saved(Image.fromarray(np.broadcast_to(wave, (640, 640)).copy()), "JPEG", quality=95)
    found = pictures.decode(content, 1, 64)[..., 0]
    np.testing.assert_allclose(found[30], wave.reshape(64, 10).mean(axis=1), atol=4)


BAD = {
    "empty": b"",
    "text": b"this is a text, and no picture",
    "half a PNG": TRUTH["colour PNG"][0][:60],
    "half a JPEG": saved(Image.fromarray(COLOUR), "JPEG")[:300],
    "a bomb": None,
    "floats": saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "32 bits": saved(Image.fromarray(GREY.astype(np.int32) * 100_000), "TIFF"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_unreadable(kind):
    content = BAD[kind]
    if content is None:
        import struct
        import zlib

        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
        content += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(pictures.Unreadable, match=r"."):
        pictures.decode(content, 3, 8)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(TRUTH)), st.data())
def test_damage_is_unreadable_or_still_a_picture(kind, data):
    content = bytearray(TRUTH[kind][0])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        pictures.look(bytes(content))
        found = pictures.decode(bytes(content), 3, 8)
    except pictures.Unreadable as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert found.shape == (8, 8, 3) and found.dtype == np.uint8
