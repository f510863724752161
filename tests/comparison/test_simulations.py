"""How often the verdict is wrong, simulated: studies of students that are alike, each with new seeds and images."""

import gathered
import numpy as np
import pytest

from kdrun.comparison import intervals, studies

IMAGES = 2000
HARD = 300  # images that networks differ on
# how far seeds, and images, are apart in their leaning to one of the two students
COMPONENTS = {"images": (0.02, 1.0), "both": (0.1, 0.5), "seeds": (0.2, 1.0)}


def answers(random, seeds: int, of_seeds: float, of_images: float, settings: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Whether students alone [seeds, images], and distilled ones [settings, seeds, images], are right: the mean gain
    over all seeds and images that there could be is zero, by symmetry."""
    alone = np.ones((seeds, IMAGES), bool)
    distilled = np.ones((settings, seeds, IMAGES), bool)
    leaning = of_seeds * random.normal(size=(settings, seeds, 1)) + of_images * random.normal(size=(settings, 1, HARD))
    alone[:, :HARD] = random.random((seeds, HARD)) < 0.5
    same = random.random((settings, seeds, HARD)) < 0.5  # as the one alone is
    # among the other half the two are never both right: a coin that leans says which
    coin = random.random((settings, seeds, HARD)) < 1 / (1 + np.exp(-leaning))
    distilled[..., :HARD] = np.where(same, alone[:, :HARD], coin)
    if settings == 1:
        alone[:, :HARD] = np.where(same[0], alone[:, :HARD], ~coin[0])
    return alone, distilled


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("components", COMPONENTS)
def test_the_interval_holds_for_new_seeds_and_images(components, seeds):
    random = np.random.default_rng(seeds)
    held = []
    for _ in range(1000):
        alone, distilled = answers(random, seeds, *COMPONENTS[components])
        found = intervals.crossed(distilled[0].astype(int) - alone)
        held.append((found.low <= 0 <= found.high, found.low > 0))
    held, helped = np.mean(held, axis=0)
    assert held >= 0.93
    assert helped <= 0.03


def judged(random, seeds: int, settings: int, fresh: int = 0) -> studies.Study:
    """A study of settings over seeds, and the one that they choose over fresh ones, too."""
    alone, distilled = answers(random, seeds + fresh, 0.15, 0.7, settings)
    # what is chosen by is of other images, and of the same lucky or unlucky weights
    validation = distilled[..., :HARD].mean(axis=2) + 0.01 * random.normal(size=distilled.shape[:2])
    rows = [gathered.run("student", "alone", seed, alone[seed]) for seed in range(seeds + fresh)]
    chosen = validation[:, :seeds].mean(axis=1).argmax()
    for number in range(settings):
        for seed in range(seeds + fresh if number == chosen else seeds):
            given = {"validation_accuracy": validation[number, seed], "temperature": number + 1.0}
            rows.append(gathered.run("distill", f"d{number:02}", seed, distilled[number, seed], **given))
    (study,) = studies.judge(gathered.frame(*rows)).studies
    assert study.chosen == f"d{chosen:02}" and study.fresh == bool(fresh)
    return study


@pytest.mark.parametrize(
    ("seeds", "settings", "fresh"), [(5, 1, 0), (3, 18, 0), pytest.param(3, 18, 5, marks=pytest.mark.slow)]
)
def test_helped_is_seldom_said_of_students_that_are_alike(seeds, settings, fresh):
    random = np.random.default_rng(7)
    found = [judged(random, seeds, settings, fresh) for _ in range(120)]
    assert np.mean([study.verdict == "helped" for study in found]) <= 0.03
    gains = [study.gain.gain for study in found]
    if settings == 1 or fresh:
        assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(len(gains))
    else:  # why it is adjusted for: the chosen one's gain is too high on the seeds that chose
        assert np.mean(gains) > 3 * np.std(gains) / np.sqrt(len(gains))
