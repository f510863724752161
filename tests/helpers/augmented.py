"""Augmentation computed in another way: one image and one pixel after the other, in Python's numbers."""

import colorsys
import math

import numpy as np

from kdrun.data.augmentation import Augmentation


def words(seed: int, index: int, view: int, count: int = 32) -> list[int]:
    """Philox4x32-10 as its authors write it, with the key (seed, 0) and the counters (block, index, view, 0)."""
    found, low = [], 2**32 - 1
    for block in range(count // 4):
        c, k = [block, index, view, 0], [seed, 0]
        for _ in range(10):
            one, two = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(two >> 32) ^ c[1] ^ k[0], two & low, (one >> 32) ^ c[3] ^ k[1], one & low]
            k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
        found += c
    return found


def numbers(seed: int, index: int, view: int) -> list[float]:
    """The random numbers of a view, in [0, 1)."""
    return [(word % 2**23) / 2**23 for word in words(seed, index, view)]


def shifted(image: np.ndarray, view: int, jitter: int, flip: bool) -> np.ndarray:
    """Pad with zeros, cut a window out, mirror: what a view of jitter and flip alone means, pixel by pixel."""
    height, width, _ = image.shape
    side = 2 * jitter + 1
    mirrored, shift = divmod(view, side * side)
    assert mirrored in ((0, 1) if flip else (0,))
    down, right = divmod(shift, side)
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row, source_column = row + down - jitter, column + right - jitter
            if 0 <= source_row < height and 0 <= source_column < width:
                result[row, column] = image[source_row, source_column]
    return result[:, ::-1] if mirrored else result


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres and the border repeated, float64, one output pixel after the other."""
    rows, columns, channels = image.shape
    image, result = image.astype(np.float64), np.empty((height, width, channels))

    def around(position, length):
        low = math.floor(position)
        return max(low, 0), min(low + 1, length - 1), position - low

    for row in range(height):
        top, bottom, down = around((row + 0.5) * rows / height - 0.5, rows)
        for column in range(width):
            left, right, across = around((column + 0.5) * columns / width - 0.5, columns)
            upper = image[top, left] * (1 - across) + image[top, right] * across
            lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
            result[row, column] = upper * (1 - down) + lower * down
    return result


def box(u: list[float], height: int, width: int, smallest: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop: RandomResizedCrop.get_params of torchvision with scale=(smallest, 1)."""
    for try_ in range(10):
        area = height * width * (smallest + (1 - smallest) * u[try_])
        low, high = math.log(3 / 4), math.log(4 / 3)
        ratio = math.exp(low + (high - low) * u[10 + try_])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def coloured(image: np.ndarray, u: list[float], how: Augmentation) -> np.ndarray:
    """ColorJitter of torchvision, in the order of its parameters; of values from 0 to 255."""

    def factor(number, strength):
        return max(0, 1 - strength) + (1 + strength - max(0, 1 - strength)) * number

    def grey(x):
        return x if x.shape[2] == 1 else (x @ np.array([0.299, 0.587, 0.114]))[..., np.newaxis]

    x = image.astype(np.float64)
    if how.brightness:
        x = np.clip(factor(u[22], how.brightness) * x, 0, 255)
    if how.contrast:
        share = factor(u[23], how.contrast)
        x = np.clip(share * x + (1 - share) * np.round(grey(x)).mean(), 0, 255)
    if how.saturation:
        share = factor(u[24], how.saturation)
        x = np.clip(share * x + (1 - share) * grey(x), 0, 255)
    if how.hue:
        turn = how.hue * (2 * u[25] - 1)
        for place in np.ndindex(x.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[place] / 255)
            x[place] = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255
    return x


def cut_out(image: np.ndarray, u: list[float], side: int) -> np.ndarray:
    """As in the code of arXiv 1708.04552, but that an odd side is not made even."""
    height, width, _ = image.shape
    top, left = int(u[26] * height) - side // 2, int(u[27] * width) - side // 2
    mask = np.ones(image.shape)
    mask[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    return image * mask


def view(image: np.ndarray, index: int, number: int, how: Augmentation) -> np.ndarray:
    """A drawn view of an image, float64, before it is rounded to whole numbers."""
    u, x = numbers(how.seed, index, number), image.astype(np.float64)
    height, width, _ = image.shape
    if how.resized_crop < 1:
        top, left, h, w = box(u, height, width, how.resized_crop)
        x = resized(x[top : top + h, left : left + w], height, width)
    shifts = (2 * how.jitter + 1) ** 2 * (1 + how.flip)
    x = coloured(shifted(x, int(u[28] * shifts), how.jitter, how.flip), u, how)
    side = how.cutout if how.cutout >= 1 else max(1, round(how.cutout * min(height, width)))
    return cut_out(x, u, int(side)) if how.cutout else x
