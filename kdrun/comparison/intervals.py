"""Intervals of the difference between two students, for new seeds and new test images.

Seeds and images are crossed: every seed's networks answer every image. The variance of the mean difference is that of
readers and cases in multi-reader multi-case studies (Obuchowski and Rockette 1995; Gallas et al. 2009), nothing
subtracted: cautious. docs/statistics.md explains it and says how often the intervals hold.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_MOST_SEEDS = 1000  # beyond which nobody would train
_POWER = 0.8


class Gain(NamedTuple):
    """A mean difference (1 is all images), its interval at `level`, a two-sided p-value, and what these rest on."""

    gain: float
    low: float
    high: float
    p: float
    level: float
    standard_error: float
    degrees: float


def crossed(difference: np.ndarray, unit: int = 1, level: float = 0.95) -> Gain:
    """The mean of differences, integers [seeds, images] in steps of 1/`unit`, on new seeds and new images.

    V = MS_seed + MS_image, where MS_seed = var(sums over images) / images and MS_image = var(sums over seeds) / seeds;
    the standard error is sqrt(V / (seeds images)), Student's t has Satterthwaite's degrees of freedom. Of one seed it
    is the normal interval over images: of these two networks. Where nothing varies p is 1, and the interval what so
    many images cannot exclude.
    """
    seeds, images = difference.shape
    gain = int(difference.sum(dtype=np.int64)) / (unit * seeds * images)
    if images == 1:  # says nothing of other images
        return Gain(gain, -1.0, 1.0, 1.0, level, math.nan, math.nan)
    of_seeds, of_images = mean_squares(difference)
    variance = of_seeds + of_images
    if variance == 0:  # so many images have shown none: what is rarer than that may be, on others ("rule of three")
        reach = min(1.0, math.log(2 / (1 - level)) / images) if gain == 0 else 1.0
        return Gain(gain, -reach, reach, 1.0, level, 0.0, math.nan)
    error = math.sqrt(variance / (seeds * images)) / unit
    degrees = math.inf
    if seeds > 1:
        degrees = variance**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / (images - 1))
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    p = 2 * float(stats.t.sf(abs(gain) / error, degrees))
    return Gain(gain, max(-1.0, gain - half), min(1.0, gain + half), min(1.0, p), level, error, degrees)


def mean_squares(difference: np.ndarray) -> tuple[float, float]:
    """MS_seed and MS_image of differences, integers [seeds, images >= 2]; of one seed MS_seed is 0."""
    seeds, images = difference.shape
    of_seeds = _variance(difference.sum(axis=1, dtype=np.int64)) / images if seeds > 1 else 0.0
    return of_seeds, _variance(difference.sum(axis=0, dtype=np.int64)) / seeds


def _variance(counts: np.ndarray) -> float:
    """The sample variance of integers: exact, so that equal ones have none."""
    n, total, squares = len(counts), int(counts.sum()), int(np.square(counts).sum())
    return (n * squares - total**2) / (n * (n - 1))


def mean(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean over seeds; NaN for a single value."""
    if len(values) < 2:
        return math.nan, math.nan
    array = np.asarray(values, float)
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1)) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half), float(array.mean() + half)


def one_more(values: Sequence[float], variance: float = 0.0, level: float = 0.95) -> tuple[float, float]:
    """The prediction interval of one more run: mean ± t sqrt(s^2 (1 + 1/n) + variance), with n - 1 degrees of freedom.

    `variance` is what other images add. At least two values.
    """
    array = np.asarray(values, float)
    n = len(array)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * math.sqrt(array.var(ddof=1) * (1 + 1 / n) + variance)
    return float(array.mean() - half), float(array.mean() + half)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for how many there are (Holm 1979): each times the number of those not below it, monotone."""
    adjusted, so_far = {}, 0.0
    ordered = sorted(p_values, key=p_values.__getitem__)
    for index, name in enumerate(ordered):
        so_far = max(so_far, min(1.0, p_values[name] * (len(ordered) - index)))
        adjusted[name] = so_far
    return adjusted


def found_in_four_of_five(gain: Gain) -> float:
    """The gain that a study like this one finds with a power of 80 %; NaN where nothing varies."""
    if not gain.standard_error > 0:
        return math.nan
    quantiles = stats.t.ppf([(1 + gain.level) / 2, _POWER], gain.degrees)
    return float(quantiles.sum()) * gain.standard_error


def seeds_to_tell(difference: np.ndarray, unit: int = 1, level: float = 0.95) -> int | None:
    """About how many seeds find a gain as large as the mean difference with a power of 80 %; None where no number does,
    because the test images are too few, or more than a thousand would be needed. At least two seeds.

    From the components of the two-way analysis of variance: seeds, images, and both together.
    """
    seeds, images = difference.shape
    of_seeds, of_images = mean_squares(difference)
    squares = float(np.square(difference, dtype=np.float64).sum())
    correction = float(difference.sum(dtype=np.int64)) ** 2 / (seeds * images)
    left = squares - correction - of_seeds * (seeds - 1) - of_images * (images - 1)
    both = max(0.0, left / ((seeds - 1) * (images - 1)))
    image = max(0.0, (of_images - both) / seeds)
    gain = abs(int(difference.sum(dtype=np.int64))) / (seeds * images)
    n = np.arange(2, _MOST_SEEDS + 1)
    then_of_images = both + n * image
    variance = of_seeds + then_of_images
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = variance**2 / (of_seeds**2 / (n - 1) + then_of_images**2 / (images - 1))
        least = stats.t.ppf([[(1 + level) / 2], [_POWER]], degrees).sum(axis=0) * np.sqrt(variance / (n * images))
    enough = np.flatnonzero(least <= gain)
    return int(n[enough[0]]) if gain > 0 and len(enough) else None
