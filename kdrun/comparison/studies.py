"""Judgement of each study, runs whose students have the same network, data and steps: did distilling help?

What is compared is decided here: which settings are candidates, which student alone they are held against, which seeds
choose and which test, and at which level. docs/statistics.md says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdrun.comparison import intervals, settings
from kdrun.comparison.choice import Choice, best_on_validation, choose
from kdrun.comparison.intervals import Gain
from kdrun.comparison.kinds import ALONE, DISTILLED, TEACHER

_SAME_SIZE = 0.01  # of the student's parameters, which a candidate may have more or fewer
_FRESH = 3  # seeds that were not used to choose, so that they alone are tested
_OF_STUDY = ("format", "model", "data", "dataset_sha256", "num_classes", "test_labels", "quantize")  # code, steps, too
_MOST_SAID = 5  # students alone that are no baseline
_VERDICT = 3  # seeds, with fewer of which there is none


class Control(NamedTuple):
    """What the chosen setting gains over a control; p is adjusted (Holm) for how many controls there are."""

    group: str
    name: str
    gain: Gain
    p: float
    seeds: int


@dataclass(frozen=True)
class Study:
    """What is known of one study. `verdict`: helped, harm, no gain that matters, not decided, too few seeds, or not
    comparable, where nothing but `reason` and `chosen` is known."""

    study: str
    verdict: str
    chosen: str | None = None
    reason: str = ""
    baseline: str = ""
    alike: str = ""  # the student alone that is trained as the chosen one is, if it is not the baseline
    alike_gain: Gain | None = None
    alike_seeds: int = 0
    settings: tuple[str, ...] = ()  # the candidates
    candidates: int = 0
    baselines: int = 0  # students alone that the baseline is the best of
    by_own_seeds: bool = False  # candidates had too few seeds in common to be chosen among by these
    adjusted_for: int = 1
    seeds: tuple[int, ...] = ()  # that the gain is of
    chosen_on: tuple[int, ...] = ()  # seeds that chose; none where there was one candidate
    fresh: bool = False  # whether the former are none of the latter
    look: int = 1
    missing: tuple[int, ...] = ()  # seeds of the chosen setting that the baseline lacks
    tried_on: tuple[int, ...] = ()  # seeds of settings that had too few of them to be candidates
    untried: Gain | None = None  # over the other seeds
    teachers: int = 0  # or ensembles of them
    ensemble: int = 1  # how many are one
    own_teachers: bool = False  # whether each seed has one, and no other seed has it
    images: int = 0
    gain: Gain | None = None
    p: float = math.nan  # adjusted
    gain_last: float = math.nan  # of the last weights
    seeds_to_tell: int | None = None
    gap: float = math.nan  # of the students alone to the teachers that taught
    margin: float = 0.0
    controls: tuple[Control, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()  # distilled settings that are no candidates, and why


class Judgement(NamedTuple):
    """The studies, the settings with what each gains, the runs that these are of, and what else is to be said."""

    studies: list[Study]
    groups: pd.DataFrame
    runs: pd.DataFrame
    notes: list[str]


Answers = Mapping[int, tuple[np.ndarray, int]]  # by seed: how many of so many teachers' students are right, per image


def judge(runs: pd.DataFrame, margin: float = 0.002, earlier: Sequence[Mapping] = ()) -> Judgement:
    """Compare every setting of distilled students with the students alone of its study.

    `margin` is the gain that does not matter (1 is all images); `earlier` are studies of comparisons before this one,
    each with study, chosen and seeds.
    """
    usable, notes = settings.once(runs)
    groups = settings.grouped(usable)
    answers = {name: _answers(part) for name, part in usable.groupby("group", sort=False)} if len(usable) else {}
    studies: list[Study] = []
    gained: dict[str, list] = {}
    for name in dict.fromkeys(groups["study"]) if len(groups) else ():
        part = groups[groups["study"] == name]
        if (part["kind"] == DISTILLED).any():
            studies.append(_judged(name, part, usable[usable["study"] == name], answers, margin, earlier))
            gained |= _gains(part, studies[-1], answers)
    studies = [_with_gap(study, usable) for study in studies]
    for study in studies:
        notes += _no_baselines(study, usable)
    groups = groups.join(pd.DataFrame.from_dict(gained, orient="index", columns=_GAINED))
    return Judgement(studies, groups, usable, notes)


def _no_baselines(study: Study, runs: pd.DataFrame) -> list[str]:
    """Why the students alone that there are are no baseline of a study that has none: a line a setting, few of them."""
    if study.baseline or study.chosen is None:
        return []
    ours = runs[runs["group"] == study.chosen].iloc[0]
    said = []
    for _, run in runs[(runs["stage"] == ALONE) & (runs["study"] != study.study)].drop_duplicates("group").iterrows():
        keys = [key for key in _OF_STUDY if run["identity"].get(key) != ours["identity"].get(key)]
        keys += ["number of steps"] if run["planned_steps"] != ours["planned_steps"] else []
        said.append(
            f"{run['run']} is no baseline of setting {study.chosen}: it has another {', '.join(keys or ['code'])}"
        )
    return said[:_MOST_SAID]


def difference(ours: Answers, theirs: Answers, seeds: Sequence[int]) -> tuple[np.ndarray, int]:
    """Right answers of the ones less those of the others, integers [seeds, images], and what 1 is in them."""
    unit = math.lcm(*(each[seed][1] for each in (ours, theirs) for seed in seeds))
    rows = [
        right.astype(np.int64) * (unit // count) - right_alone.astype(np.int64) * (unit // count_alone)
        for (right, count), (right_alone, count_alone) in ((ours[seed], theirs[seed]) for seed in seeds)
    ]
    return np.stack(rows), unit


def _answers(runs: pd.DataFrame) -> Answers:
    found: dict[int, tuple[np.ndarray, int]] = {}
    for seed, right in zip(runs["seed"], runs["right"], strict=True):
        so_far, count = found.get(seed, (0, 0))
        found[seed] = (so_far + right.astype(np.int16), count + 1)
    return found


def _judged(
    name: str,
    groups: pd.DataFrame,
    runs: pd.DataFrame,
    answers: Mapping[str, Answers],
    margin: float,
    earlier: Sequence[Mapping],
) -> Study:
    alone, candidates, left_out = _same_students(groups)
    if not candidates:
        return Study(name, "not comparable", None, "no distilled student is the same student", left_out=left_out)
    seeds = {group: set(answers[group]) for group in (*candidates, *alone.index)}
    choice = choose(candidates, list(alone.index), seeds, runs)
    if choice is None:
        why = "the same student trained alone is missing" if alone.empty else "no seed is common to both"
        return Study(name, "not comparable", best_on_validation(candidates, None, runs), why, left_out=left_out)
    left_out += tuple((group, "has too few seeds in common with the others") for group in choice.left_out)
    test = _test(name, choice, seeds, earlier)
    matrix, unit = difference(answers[choice.chosen], answers[choice.baseline], test.seeds)
    gain = intervals.crossed(matrix, unit, test.level)
    alike, alike_gain, alike_seeds = _alike(alone, groups.loc[choice.chosen, "student"], choice, answers, test)
    tried_on = sorted(set().union(*(seeds[group] for group in choice.left_out)) & set(test.seeds))
    untried = [seed for seed in test.seeds if seed not in tried_on]
    return Study(
        name,
        _verdict(gain, len(test.seeds), margin, len(choice.baselines), alike_gain),
        choice.chosen,
        baseline=choice.baseline,
        alike=alike,
        alike_gain=alike_gain,
        alike_seeds=alike_seeds,
        settings=tuple(choice.candidates),
        candidates=len(choice.candidates),
        baselines=len(choice.baselines),
        by_own_seeds=choice.by_own_seeds,
        **test._asdict(),
        chosen_on=tuple(sorted(choice.seeds)) if len(choice.candidates) > 1 else (),
        missing=tuple(sorted(seeds[choice.chosen] - seeds[choice.baseline])),
        tried_on=tuple(tried_on),
        untried=_gain(answers, choice.chosen, choice.baseline, untried) if tried_on and len(untried) > 1 else None,
        **_teachers(runs[(runs["group"] == choice.chosen) & runs["seed"].isin(test.seeds)]),
        images=matrix.shape[1],
        gain=gain,
        p=min(1.0, gain.p * test.adjusted_for),
        gain_last=_gain_last(runs, choice, test.seeds),
        seeds_to_tell=_seeds_to_tell(matrix, unit, test),
        margin=margin,
        controls=_controls(groups[groups["kind"] == "control"], answers, choice.chosen, test.seeds),
        left_out=left_out,
    )


def _same_students(groups: pd.DataFrame) -> tuple[pd.DataFrame, list[str], tuple[tuple[str, str], ...]]:
    """The students alone, the distilled ones of the same size, and why the others are not."""
    alone, distilled = (groups[groups["kind"] == kind] for kind in (ALONE, DISTILLED))
    size = (alone if len(alone) else distilled)["parameters"].min()
    is_same = (distilled["parameters"] - size).abs() <= _SAME_SIZE * size
    left_out = tuple(
        (group, f"is not the same student: {row['parameters']:,.0f} parameters against {size:,.0f}")
        for group, row in distilled[~is_same].iterrows()
    )
    return alone, list(distilled.index[is_same]), left_out


class _Test(NamedTuple):
    """Which seeds are tested, whether none of them chose, and what the level is adjusted for."""

    seeds: tuple[int, ...]
    fresh: bool
    adjusted_for: int
    look: int

    @property
    def level(self) -> float:
        return 1 - _error(self.look) / self.adjusted_for


def _test(study: str, choice: Choice, seeds: Mapping[str, set[int]], earlier: Sequence[Mapping]) -> _Test:
    pairs = sorted(seeds[choice.chosen] & seeds[choice.baseline])
    untouched = [seed for seed in pairs if seed not in choice.seeds]
    several = len(choice.candidates) > 1
    fresh = several and len(untouched) >= _FRESH
    tested = tuple(untouched if fresh else pairs)
    before = {tuple(each["seeds"]) for each in earlier if (each["study"], each["chosen"]) == (study, choice.chosen)}
    looks = [each for each in before if len(set(each)) >= _VERDICT and set(each) < set(tested)]
    return _Test(tested, fresh, len(choice.candidates) if several and not fresh else 1, 1 + len(looks))


def _teachers(runs: pd.DataFrame) -> dict:
    """How many teachers, or ensembles of them, taught these runs, and whether each seed has its own."""
    taught = list(runs["taught_by"])
    teachers = len(set(taught) - {()})
    own = teachers == len(taught) == runs["seed"].nunique() > 1
    return {"teachers": teachers, "ensemble": max(map(len, taught)), "own_teachers": own}


def _error(look: int) -> float:
    """How often an interval may fail: looks at the same seeds and more of them share it."""
    return 0.05 if look == 1 else 0.02 if look <= 3 else 0.05 / look


def _verdict(gain: Gain, seeds: int, margin: float, baselines: int, alike: Gain | None) -> str:
    if seeds < _VERDICT:
        return "too few seeds"
    if gain.low > 0:
        return "helped"
    if gain.high < 0 and _harm_holds(gain, baselines, alike):
        return "harm"
    return "no gain that matters" if -margin <= gain.low and gain.high <= margin else "not decided"


def _harm_holds(gain: Gain, baselines: int, alike: Gain | None) -> bool:
    """The best of several students alone is ahead by luck, too: by more than that, or the one trained alike is, too."""
    return gain.p * baselines < 1 - gain.level or bool(alike and alike.high < 0)


def _alike(
    alone: pd.DataFrame,
    student: str,
    choice: Choice,
    answers: Mapping[str, Answers],
    test: _Test,
) -> tuple[str, Gain | None, int]:
    """The student alone that is trained as the chosen one is, if it is not the baseline; the gain over it, of how many
    seeds."""
    for name in alone.index[alone["student"] == student]:
        seeds = [seed for seed in test.seeds if seed in answers[name]]
        if seeds:
            gain = _gain(answers, choice.chosen, name, seeds, test.level)
            return ("" if name == choice.baseline else name), gain, len(seeds)
    return "", None, 0


def _gain(answers: Mapping[str, Answers], ours: str, theirs: str, seeds: Sequence[int], level: float = 0.95) -> Gain:
    return intervals.crossed(*difference(answers[ours], answers[theirs], seeds), level)


def _seeds_to_tell(matrix: np.ndarray, unit: int, test: _Test) -> int | None:
    """At the level of the next look, which those seeds would be."""
    level = test._replace(look=test.look + (len(test.seeds) >= _VERDICT)).level
    return intervals.seeds_to_tell(matrix, unit, level) if min(matrix.shape) > 1 else None


def _gain_last(runs: pd.DataFrame, choice: Choice, seeds: Sequence[int]) -> float:
    """What the last weights gain."""
    some = runs[runs["seed"].isin(seeds)]
    errors = some.groupby(["group", "seed"])["errors_last"].mean().groupby("group").mean()
    return float(errors[choice.baseline] - errors[choice.chosen]) / int(some["count"].iloc[0])


def _controls(
    groups: pd.DataFrame, answers: Mapping[str, Answers], chosen: str, tested: Sequence[int]
) -> tuple[Control, ...]:
    """The best control by validation first. Over the seeds that are tested, where a control has at least two of them,
    else over all that both have; with one seed alone it is none."""
    order = groups.sort_values(["validation_accuracy", "validation_cross_entropy"], ascending=[False, True])
    found = {}
    for name in order.index:
        shared = sorted(set(answers[chosen]) & set(answers[name]))
        seeds = [seed for seed in shared if seed in tested]
        seeds = seeds if len(seeds) > 1 else shared
        if len(seeds) > 1:
            found[name] = _gain(answers, chosen, name, seeds), len(seeds)
    adjusted = intervals.holm({name: gain.p for name, (gain, _) in found.items()})
    return tuple(
        Control(name, groups.loc[name, "control"], gain, adjusted[name], seeds) for name, (gain, seeds) in found.items()
    )


def _with_gap(study: Study, runs: pd.DataFrame) -> Study:
    """The study with the gap between the students alone and the teachers that taught, if these are among the runs."""
    if study.gain is None:
        return study
    of_seeds = runs[runs["seed"].isin(study.seeds)]
    taught = {each for each in of_seeds.loc[of_seeds["group"] == study.chosen, "taught_by"]}
    teachers = runs[runs["stage"] == TEACHER].drop_duplicates("weights").set_index("weights")["test_accuracy"]
    if not taught or any(len(each) != 1 or each[0] not in teachers.index for each in taught):
        return study
    accuracy = np.mean([teachers[each[0]] for each in sorted(taught)])
    alone = of_seeds.loc[of_seeds["group"] == study.baseline, "test_accuracy"].mean()
    return replace(study, gap=float(accuracy - alone))


_GAINED = ["pairs", "gain", "gain_low", "gain_high", "p", "p_adjusted", "gains"]


def _gains(groups: pd.DataFrame, study: Study, answers: Mapping[str, Answers]) -> dict[str, list]:
    """What each setting gains over the study's baseline, over all seeds that both have, at 95 %; p adjusted among the
    candidates for their number (each times it), among controls by Holm's. Single gains are by seed."""
    found = {}
    for name, row in groups.iterrows():
        seeds = sorted(set(answers[name]) & set(answers[study.baseline])) if study.baseline else []
        if row["kind"] == ALONE or not seeds:
            continue
        matrix, unit = difference(answers[name], answers[study.baseline], seeds)
        singles = (matrix.sum(axis=1) / (unit * matrix.shape[1])).tolist()
        found[name] = (intervals.crossed(matrix, unit), dict(zip(map(int, seeds), singles, strict=True)))
    controls = {
        name: gain.p
        for name, (gain, gains) in found.items()
        if groups.loc[name, "kind"] == "control" and len(gains) > 1
    }
    left_out = {name for name, _ in study.left_out}
    adjusted = {name: min(1.0, found[name][0].p * max(1, study.candidates)) for name in found if name not in left_out}
    adjusted |= intervals.holm(controls)
    return {
        name: [len(gains), gain.gain, *_of_seeds(gain, adjusted.get(name, math.nan), len(gains)), gains]
        for name, (gain, gains) in found.items()
    }


def _of_seeds(gain: Gain, adjusted: float, seeds: int) -> tuple[float, float, float, float]:
    """Interval, p, adjusted p; of one seed they are of two networks alone, and left out."""
    return (gain.low, gain.high, gain.p, adjusted) if seeds > 1 else (math.nan,) * 4
