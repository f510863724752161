"""How often the verdict is right, and how many seeds it takes: simulated, as tables for docs/statistics.md.

    python benchmarks/power.py

Studies of 10,000 test images, of which networks differ on 200. Single seeds' gains have the deviation that is said; how
far images lean to one of the two students is the second number of COMPONENTS.
"""

from collections.abc import Iterator

import numpy as np

from kdrun.comparison import intervals

IMAGES, HARD, GAIN = 10_000, 200, 0.003
SEEDS = (2, 3, 5, 7, 10, 20)
DEVIATIONS = (0.001, 0.002, 0.004)  # of single gains
SETTINGS = (1, 4, 18)
COMPONENTS = {"images more than seeds": (0.001, 0.7), "both alike": (0.0013, 0.5), "seeds more": (0.002, 0.5)}
COMPONENTS |= {"seeds alone": (0.006, 0.0)}
STUDIES = 2000


def differences(
    random: np.random.Generator, seeds: int, gain: float, deviation: float, of_images: float = 0.5
) -> np.ndarray:
    """Right distilled less right alone, of the images that networks differ on, [seeds, HARD].

    Every seed has a leaning of its own, every image too; half of the images differ in a seed. The chance of a better
    answer is cut to 0 and 1.
    """
    of_differing = 0.5 * HARD / IMAGES
    by_chance = of_differing / IMAGES  # of single gains: images that differ by the toss of a coin
    of_seed = np.sqrt(max(0.0, deviation**2 - by_chance)) / of_differing
    leaning = gain / of_differing + of_seed * random.normal(size=(seeds, 1)) + of_images * random.normal(size=(1, HARD))
    better = random.random((seeds, HARD)) < (1 + np.clip(leaning, -1, 1)) / 2
    return np.where(random.random((seeds, HARD)) < 0.5, 2 * better - 1, 0)


def studies(random: np.random.Generator, seeds: int, *components: float) -> Iterator[np.ndarray]:
    """Whole studies, differences [seeds, IMAGES]."""
    rest = np.zeros((seeds, IMAGES - HARD), int)
    for _ in range(STUDIES):
        yield np.concatenate([differences(random, seeds, *components), rest], axis=1)


def coverage(random: np.random.Generator) -> None:
    """How often the 95 % interval holds the true gain, zero, and "helped" is said; and Student's t over seeds."""
    print('| what varies | seeds | interval holds | false "helped" | Student\'s t over seeds holds |')
    print("|---|---|---|---|---|")
    for name, (deviation, of_images) in COMPONENTS.items():
        for seeds in SEEDS[:5]:
            held, over_seeds, helped = [], [], []
            for matrix in studies(random, seeds, 0.0, deviation, of_images):
                one = intervals.crossed(matrix)
                low, high = intervals.mean(matrix.mean(axis=1))
                held.append(one.low <= 0 <= one.high)
                helped.append(one.low > 0)
                over_seeds.append(low <= 0 <= high)
            said = f"{np.mean(helped):.1%}" if seeds > 2 else "no verdict"
            print(f"| {name} | {seeds} | {np.mean(held):.1%} | {said} | {np.mean(over_seeds):.1%} |", flush=True)


def power(random: np.random.Generator) -> None:
    """How often a gain of 0.3 points is found."""
    settings = " | ".join(f"{count} setting{'s' * (count > 1)}" for count in SETTINGS)
    print(f"| deviation of single gains | seeds | {settings} | half of the interval |\n|{'---|' * (3 + len(SETTINGS))}")
    for deviation in DEVIATIONS:
        asked = GAIN
        for _ in range(3):  # what is cut from chances takes some of a gain away
            single = np.concatenate([differences(random, 20, asked, deviation, 0.5) for _ in range(4000)])
            asked *= GAIN / (single.sum(axis=1).mean() / IMAGES)
        for seeds in SEEDS:
            found = [intervals.crossed(matrix) for matrix in studies(random, seeds, asked, deviation, 0.5)]
            powers = [np.mean([one.gain > 0 and one.p < 0.05 / count for one in found]) for count in SETTINGS]
            half = np.median([(one.high - one.low) / 2 for one in found])
            shown = " | ".join(f"{share:.0%}" for share in powers)
            print(f"| {100 * deviation:.1f} points | {seeds} | {shown} | {100 * half:.2f} |", flush=True)


if __name__ == "__main__":
    coverage(np.random.default_rng(0))
    print()
    power(np.random.default_rng(1))
