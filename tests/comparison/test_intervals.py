"""Intervals and p-values against the formulas, written out as loops in float64, and against their limits."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import reference
from scipy import stats

from kdrun.comparison import intervals


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("seeds", "images", "unit"), [(2, 7, 1), (3, 40, 1), (5, 11, 2), (10, 30, 6)])
def test_random_differences_against_the_formula(seeds, images, unit, seed):
    random = np.random.default_rng(seed)
    d = random.integers(-unit, unit + 1, (seeds, images))
    level = (0.95, 0.98, 1 - 0.05 / 18)[seed % 3]
    found = intervals.crossed(d, unit, level)
    expected = reference.crossed([[Fraction(int(value), unit) for value in row] for row in d], level)
    clipped = (expected[0], max(-1, expected[1]), min(1, expected[2]), expected[3])
    assert (found.gain, found.low, found.high, found.p) == pytest.approx(clipped, abs=2e-6)
    assert (found.low > 0 or found.high < 0) == (found.p < 1 - level)


def test_equal_gains_of_whatever_base_have_no_spread_over_seeds():
    """9880 -> 9881 and 9179 -> 9180: as floats their differences are not the same, as images they are."""
    images = 10_000
    for base in range(8000, 10_000, 10):
        d = np.zeros((2, images), np.int64)
        d[0, base - 7] = d[1, base - 1] = 1
        found = intervals.crossed(d)
        assert intervals.mean_squares(d)[0] == 0.0
        assert found.gain == 1e-4 and 0.15 < found.p < 0.17 and found.low < 0
    d = np.zeros((3, 50), int)
    d[:, 3] = 1  # the same image in each seed
    assert intervals.crossed(d).p == pytest.approx(reference.two_sided(1, 49), abs=1e-6)


def test_where_nothing_varies_nothing_is_told():
    for seeds, images in product((1, 2, 5), (2, 10, 1000)):
        none = intervals.crossed(np.zeros((seeds, images), int))
        # an image that differs would be seen with a chance of 97.5 %, were they more frequent than this
        reach = min(1, -math.log(0.025) / images)
        assert (none.gain, none.low, none.high, none.p) == (0, pytest.approx(-reach), pytest.approx(reach), 1)
        every = intervals.crossed(np.ones((seeds, images), int))
        assert (every.gain, every.low, every.high, every.p) == (1, -1, 1, 1)


@pytest.mark.parametrize("value", [-1, 0, 1])
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_one_image_says_nothing_of_others(seeds, value):
    found = intervals.crossed(np.full((seeds, 1), value))
    assert (found.gain, found.low, found.high, found.p) == (value, -1, 1, 1)


def test_one_seed_is_about_two_networks_on_new_images():
    d = np.random.default_rng(0).integers(-1, 2, (1, 400))
    half = 1.959964 * np.std(d[0], ddof=1) / 20
    found = intervals.crossed(d)
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half))


def test_without_a_part_of_images_it_is_the_t_over_seeds():
    """Every image's sum over seeds the same: what is left is Student's t of the seeds' means."""
    gains = np.array([10, 14, 9, 7])
    d = np.zeros((4, 40), int)
    start = 0
    for row, gain in zip(d, gains, strict=True):
        row[start : start + gain] = 1
        start += gain
    assert start == 40
    found = intervals.crossed(d)
    means = gains / 40
    half = reference.quantile(0.95, 3) * means.std(ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((means.mean() - half, means.mean() + half), abs=1e-6)
    assert intervals.mean(means) == pytest.approx((found.low, found.high))
    assert np.isnan(intervals.mean([0.5])).all()


def test_a_unit_is_a_share():
    d = np.random.default_rng(1).integers(-1, 2, (3, 20))
    assert intervals.crossed(6 * d, 6) == pytest.approx(intervals.crossed(d))


def test_holm_against_its_definition():
    for p in ([0.01, 0.04, 0.03], [0.5, 0.02], [0.2], [0.04, 0.04, 0.001, 0.9], []):
        # the largest, over all that are not above it, of how many are not below times the p-value itself
        scaled = {q: min(1.0, q * sum(other >= q for other in p)) for q in p}
        expected = [max(value for q, value in scaled.items() if q <= own) for own in p]
        found = intervals.holm({str(place): value for place, value in enumerate(p)})
        assert [found[str(place)] for place in range(len(p))] == pytest.approx(expected)


def test_one_more_run_lies_in_the_prediction_interval_as_often_as_it_says():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        *ours, theirs = random.normal(70, 3, 4)
        low, high = intervals.one_more(ours)
        inside += low <= theirs <= high
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)
    values = np.array([67.0, 66, 61])
    half = reference.quantile(0.95, 2) * math.sqrt(values.var(ddof=1) * 4 / 3 + 64)
    assert intervals.one_more(values, 64) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-5)


def studies(random, seeds, images, gain, of_seeds, of_images, of_both):
    """Differences whose components are those: each image's chance of a better or worse answer, each seed's too."""
    shift = gain + of_seeds * random.normal(size=(seeds, 1))
    hard = of_images * random.normal(size=(1, images))
    return np.clip(np.rint(shift + hard + of_both * random.normal(size=(seeds, images))), -1, 1).astype(int)


@pytest.mark.parametrize("seed", range(4))
def test_as_many_seeds_as_the_components_of_the_analysis_of_variance_say(seed):
    random = np.random.default_rng(seed)
    d = studies(random, 4, 60, 0.15, 0.1, 0.1, 0.5)
    n, images = d.shape
    rows, columns, all_of_it = d.mean(1), d.mean(0), d.mean()
    left = sum((d[s, i] - rows[s] - columns[i] + all_of_it) ** 2 for s in range(n) for i in range(images))
    both = left / ((n - 1) * (images - 1))
    of_seeds = images * sum((row - all_of_it) ** 2 for row in rows) / (n - 1)
    image = max(0.0, (n * sum((column - all_of_it) ** 2 for column in columns) / (images - 1) - both) / n)

    def found(m: int) -> bool:
        of_images = both + m * image
        total = of_seeds + of_images
        degrees = total**2 / (of_seeds**2 / (m - 1) + of_images**2 / (images - 1))
        return abs(all_of_it) >= (stats.t.ppf(0.975, degrees) + stats.t.ppf(0.8, degrees)) * math.sqrt(
            total / m / images
        )

    told = intervals.seeds_to_tell(d)
    expected = next((m for m in range(2, 1001) if found(m)), None)
    assert told == expected and (told is None or not found(told - 1) or told == 2)
    assert intervals.seeds_to_tell(3 * d, 3) == told


def test_no_number_of_seeds_tells_what_the_images_limit():
    random = np.random.default_rng(0)
    image = random.choice([-1, 0, 1], size=(1, 200), p=[0.28, 0.42, 0.3])
    assert intervals.seeds_to_tell(np.repeat(image, 4, axis=0)) is None
    assert intervals.seeds_to_tell(np.zeros((3, 50), int)) is None


def test_the_gain_that_is_found_four_times_in_five():
    random = np.random.default_rng(5)
    components = (6, 400, 0.0, 0.05, 0.1, 0.5)
    pilots = [intervals.crossed(studies(random, *components)) for _ in range(200)]
    large = np.median([intervals.found_in_four_of_five(each) for each in pilots])
    # rounding to -1, 0, 1 keeps less of a shift than all of it: the gain itself is what counts
    for shift in np.linspace(0, 0.5, 26):
        found = [intervals.crossed(studies(random, 6, 400, shift, 0.05, 0.1, 0.5)) for _ in range(100)]
        if np.mean([each.gain for each in found]) >= large:
            break
    assert 0.65 < np.mean([each.low > 0 for each in found]) < 0.95
    assert math.isnan(intervals.found_in_four_of_five(intervals.crossed(np.zeros((3, 9), int))))
