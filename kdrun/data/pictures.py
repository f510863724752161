"""Pictures in files of somebody else: bytes -> pixels, by Pillow. None takes memory on its word."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, __version__

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
RESIZES = ("stretch", "crop", "pad")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MOST_PIXELS = 1 << 27  # of one picture; what claims more is taken for a bomb
_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I")
_TURNED = (5, 6, 7, 8)  # of EXIF's orientations, those that change width for height
_ORIENTATION = 0x0112

PILLOW = __version__
Image.init()  # all formats, once, and not by several threads at a time
# it guesses at damaged metadata, and says so in lines of its own
warnings.filterwarnings("ignore", module=r"PIL\.")


class Look(NamedTuple):
    """What a picture's header says: pixels, after EXIF's turn, and whether it has colour."""

    width: int
    height: int
    has_colour: bool


class Unreadable(Exception):
    """A picture cannot be read; the text says why."""


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise Unreadable(f"{picture.width}x{picture.height} pixels, more than {_MOST_PIXELS:,}")
            yield picture
    except Unreadable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unreadable("no picture of a known format" if content else "it is empty") from error
    except Image.DecompressionBombError as error:
        raise Unreadable("more pixels than a picture has") from error
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def look(content: bytes) -> Look:
    """What a picture's header says. Raises Unreadable."""
    with _opened(content) as picture:
        turned = picture.getexif().get(_ORIENTATION) in _TURNED
        width, height = picture.size[::-1] if turned else picture.size
        return Look(width, height, picture.mode not in _GREY)


def decode(content: bytes, channels: int, size: int | None = None, resize: str = "stretch") -> np.ndarray:
    """A picture's pixels, uint8 [height, width, channels]; the first one of several. Raises Unreadable.

    With `size` it is made a square of so many pixels a side: stretched, cropped at the middle, or padded with black.
    Transparent pixels are on white; 16 bits become the upper 8.
    """
    with _opened(content) as picture:
        if size is not None:
            picture.draft(None, (2 * size, 2 * size))  # a JPEG much larger than that is read at a half, a quarter, ...
        picture.seek(0)
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        plain = _plain(picture, "L" if channels == 1 else "RGB")
        if size is not None and plain.size != (size, size):
            plain = _resized(plain, size, resize)
        pixels = np.asarray(plain, np.uint8)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _plain(picture: Image.Image, mode: str) -> Image.Image:
    """A picture in grey (L) or colour (RGB), whatever it was in."""
    if picture.mode.startswith("I"):  # 16 bits, also where Pillow keeps them in 32
        pixels = np.asarray(picture)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 0xFFFF):
            raise Unreadable(f"its pixels are from {pixels.min()} to {pixels.max()}, which is no picture of 16 bits")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert(mode)
    if picture.mode == "F":
        raise Unreadable("its pixels are floats, of which nobody knows what is white")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == mode else picture.convert(mode)


def _resized(picture: Image.Image, size: int, resize: str) -> Image.Image:
    square, bilinear = (size, size), Image.Resampling.BILINEAR
    if resize == "crop":
        return ImageOps.fit(picture, square, bilinear)
    return ImageOps.pad(picture, square, bilinear) if resize == "pad" else picture.resize(square, bilinear)
