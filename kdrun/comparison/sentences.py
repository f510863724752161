"""A study in words, and the commands that would tell more."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from kdrun.comparison import advice, intervals, texts
from kdrun.comparison.intervals import Gain
from kdrun.comparison.kinds import ALONE
from kdrun.comparison.studies import Control, Judgement, Study
from kdrun.config.schema import flatten

NOTHING = "Nothing to compare: no distilled student is among the completed runs."
_PLAIN = {1: "one", 2: "two"}
_SAID = ("temperature", "alpha")  # of every setting
_NO_SETTING = ("format", "code", "objective_code", "dataset_sha256", "test_labels")


class Said(NamedTuple):
    """Of a study: which it is, the answer, further lines, and commands to paste."""

    digest: str
    study: str
    sentence: str
    notes: list[str]
    commands: list[str]


def said(judgement: Judgement) -> list[Said]:
    """Each study in words, in an order that depends on nothing but what they are."""
    found = []
    for study in judgement.studies:
        runs = judgement.runs[judgement.runs["study"] == study.study]
        sentence = _sentence(study, judgement.groups, runs)
        found.append(Said(study.study, _name(runs), sentence, *_further(study, runs)))
    names = [one.study for one in found]
    found = [one._replace(study=f"{one.study}, {one.digest}") if names.count(one.study) > 1 else one for one in found]
    return sorted(found, key=lambda one: one.study)


def _name(runs: pd.DataFrame) -> str:
    first = runs.iloc[0]
    data = first["identity"]["data"].get("name") or first.get("config.data.name") or "data"
    size = runs.loc[runs["kind"] == ALONE, "parameters"].min()
    size = runs["parameters"].min() if pd.isna(size) else size
    return f"{data}, {first['model']} of {size:,.0f} parameters, {first['planned_steps']:,.0f} steps"


def _sentence(study: Study, groups: pd.DataFrame, runs: pd.DataFrame) -> str:
    if study.gain is None:
        return f"Not comparable: {study.reason}."
    gain = study.gain
    over = f"{points(gain.gain)} points test accuracy over the student alone"
    of_these = " for these networks on new images" if len(study.seeds) == 1 else ""
    basis = f"{interval(study, gain)}{of_these}, {_p(study)}; {_basis(study, gain, groups, runs)}"
    if study.verdict == "too few seeds":
        return f"Not enough seeds to tell: {over} ({basis})."
    if study.verdict == "helped":
        return f"Distilling helped: {over} ({basis}){_share(study, gain)}."
    if study.verdict == "harm":
        return f"Distilling did harm: {over} ({basis})."
    if study.verdict == "no gain that matters":
        between = f"between {points(gain.low)} and {points(gain.high)} points test accuracy over the student alone"
        return f"No gain that matters: {between}, where {100 * study.margin:g} would matter ({basis})."
    if gain.high < 0:
        luck = f"the best of {study.baselines} students alone is ahead of it, which may be their luck"
        return f"Not decided: {over} ({basis}): {luck}."
    beyond = [
        f"a {kind} above {100 * most:.2f}" for kind, most in (("gain", gain.high), ("loss", -gain.low)) if most < 1
    ]
    excluded = f"; {' and '.join(beyond)} points {'are' if len(beyond) > 1 else 'is'} excluded" if beyond else ""
    return f"Not decided: {over} ({basis}){excluded}. {_how_many(study)}"


def interval(study: Study, gain: Gain) -> str:
    """A study's interval of its gain, with its level after all looks."""
    level = f"{100 * (1 - (1 - gain.level) * study.adjusted_for):g} %"
    look = f", look {study.look}" if study.look > 1 else ""
    return f"{level} {points(gain.low)} to {points(gain.high)}{look}"


def _p(study: Study) -> str:
    adjusted = f", adjusted for {study.adjusted_for} settings" if study.adjusted_for > 1 else ""
    return f"p = {p_value(study.p)}{adjusted}"


def _basis(study: Study, gain: Gain, groups: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Seeds, teachers, images; the setting, how it was chosen; which weights."""
    chosen = groups.loc[study.chosen]
    teachers = _teachers(study)
    parts = [f"{_count(len(study.seeds), 'seed')}, {teachers}{_count(study.images, 'test image')}"]
    parts.append(f"{_setting(study, groups, runs)}, {_how_chosen(study, chosen)}")
    weights = "weights best on validation" if chosen["held_out"] else "last weights"
    if _apart(study, gain):
        weights += f", with the last ones {points(study.gain_last)}"
    if study.alike and study.alike_gain is not None:
        of_seeds = "" if study.alike_seeds == len(study.seeds) else f" ({_count(study.alike_seeds, 'seed')})"
        weights += (
            f"; over the student alone that is trained as it is {points(study.alike_gain.gain)}{of_seeds}, "
            f"the baseline being the best on validation of {study.baselines} students alone"
        )
    if chosen["overlap"]:
        weights += f"; its teacher has trained on {chosen['overlap']:,} of the validation or test images"
    return "; ".join([*parts, weights])


def _teachers(study: Study) -> str:
    """How many teachers there were: of one, the answer is about that teacher."""
    if study.teachers == 0:
        return ""
    one, many = "teacher", "teachers"
    if study.ensemble > 1:
        one, many = (f"ensemble{s} of {study.ensemble} teachers" for s in ("", "s"))
    if study.own_teachers:
        return f"each with its own {one}, "
    return f"{_PLAIN.get(study.teachers, study.teachers)} {one if study.teachers == 1 else many}, "


def _how_chosen(study: Study, chosen: pd.Series) -> str:
    if study.candidates == 1:
        how = "the only candidate"
    else:
        by = "validation" if chosen["held_out"] else "the validation images, which it has trained on,"
        own = ", each by its own seeds," if study.by_own_seeds else ""
        how = f"chosen on {by}{own} from {study.candidates} settings"
        if study.fresh:
            how += f" with seeds {_seeds(study.chosen_on)}, tested with seeds {_seeds(study.seeds)}"
    return how if chosen["held_out"] else f"{how}, trained on the validation images, too"


def _setting(study: Study, groups: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Objective, temperature, alpha, and what else is not the same in all of the study's settings."""
    assert study.chosen is not None  # of a study that has a gain
    chosen = groups.loc[study.chosen]
    objective = "" if chosen["objective"] == "kd" else f"{chosen['objective']}, "
    of_candidates = identities(runs[runs["group"].isin(study.settings)])
    other = "".join(f", {key} = {value}" for key, value in differing(of_candidates, study.chosen).items())
    return f"{objective}T = {chosen['temperature']:g}, alpha = {chosen['alpha']:g}{other}"


def identities(runs: pd.DataFrame) -> dict[str, Mapping]:
    """Each setting's."""
    return dict(zip(runs["group"], runs["identity"], strict=True))


def differing(identities: Mapping[str, Mapping], name: str) -> dict[str, str]:
    """The keys in which a setting is not like all others, by their last words, with its values; temperature, alpha and
    the names of objectives left out."""
    flat = {}
    for group, identity in identities.items():
        own = {key: value for key, value in identity.items() if key not in (*_NO_SETTING, "teacher")}
        teachers = identity.get("teacher") or []
        own["number of teachers"] = len(teachers)
        if teachers and isinstance(teachers[0], Mapping):
            own["teacher's"] = {key: value for key, value in teachers[0].items() if key not in _NO_SETTING}
        flat[group] = {key: str(value) for key, value in flatten(own)}
    shared = [key for key in flat[name] if key not in _SAID and all(key in each for each in flat.values())]
    differ = [key for key in shared if len({each[key] for each in flat.values()}) > 1]
    return {_word(key): texts.one_line(flat[name][key]) for key in differ}


def _word(key: str) -> str:
    """A key as a sentence has it: its last word; of a name, what it is the name of; whose, if it is the teacher's."""
    first, *path = key.split(".")
    words = [word for word in (first, *path) if word not in ("name", "teacher's")]
    return f"teacher's {words[-1]}" if first == "teacher's" else words[-1]


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _apart(study: Study, gain: Gain) -> bool:
    """Whether the last weights' gain lies outside the interval."""
    return math.isfinite(study.gain_last) and not gain.low <= study.gain_last <= gain.high


def _share(study: Study, gain: Gain) -> str:
    """How much of the gap to the teacher is closed, where the gap is wide enough to be divided by."""
    if not study.gap > gain.high - gain.low:
        return ""
    return (
        f"; it closes {100 * gain.low / study.gap:.0f} to {100 * gain.high / study.gap:.0f} % of the gap to the teacher"
    )


def _how_many(study: Study) -> str:
    if study.seeds_to_tell is None:
        return "More seeds alone would not tell a gain of this size: the test images limit it."
    return f"About {study.seeds_to_tell} seeds would tell a gain of this size."


def _further(study: Study, runs: pd.DataFrame) -> tuple[list[str], list[str]]:
    notes = [_over_control(control, len(study.controls)) for control in study.controls]
    notes += _of_this(study) + _tried(study)
    found = intervals.found_in_four_of_five(study.gain) if study.gain else math.nan
    if len(study.seeds) > 2 and math.isfinite(found):
        notes.append(f"A study like this one finds a gain of {100 * found:.2f} points four times in five.")
    notes += [f"Setting {group} is no candidate: it {why}." for group, why in study.left_out]
    commands = advice.commands(study, runs)
    if study.verdict in ("too few seeds", "not comparable") and study.chosen and not commands:
        notes.append(
            "Train the same student alone, and the distilled one, with the same seeds, three or more, to find out."
        )
    if study.missing and commands:
        notes.append("The student alone lacks seeds that the distilled one has:")
    elif study.adjusted_for > 1 and commands:
        notes.append("Seeds that did not choose tell more, with no adjustment:")
    return notes, commands


def _over_control(control: Control, controls: int) -> str:
    gain = control.gain
    adjusted = f", adjusted for {controls} controls" if controls > 1 else ""
    basis = f"p = {p_value(control.p)}{adjusted}; {_count(control.seeds, 'seed')}"
    return (
        f"Over the control '{control.name}': {points(gain.gain)} points test accuracy ({100 * gain.level:g} % "
        f"{points(gain.low)} to {points(gain.high)}, {basis})."
    )


def _of_this(study: Study) -> list[str]:
    """What is left over the best control: the teacher's knowledge."""
    if study.verdict != "helped" or not study.controls:
        return []
    best = study.controls[0]
    if best.gain.gain > 0 and best.p < 1 - best.gain.level:
        return [f"It is ahead of the best control, '{best.name}', too: what is left is the teacher's knowledge."]
    left = "without the teacher's knowledge as much may be had"
    return [f"It is not ahead of the best control, '{best.name}', for certain: {left}."]


def _tried(study: Study) -> list[str]:
    """Settings of too few seeds may have been tried, and this one chosen for being ahead there."""
    if not study.tried_on:
        return []
    said = f"the other {len(study.seeds) - len(study.tried_on)} seeds are what counts"
    if gain := study.untried:
        said += f": {points(gain.gain)} (95 % {points(gain.low)} to {points(gain.high)})"
    tried = f"settings that were tried with seed {_seeds(study.tried_on)} alone"
    return [f"If {tried} are why this one was chosen, {said}."]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def points(share: float) -> str:
    """A share of the test images as percentage points, signed."""
    return f"{100 * share:+.2f}"


def p_value(value: float) -> str:
    """A p-value, never as zero."""
    return f"{value:.3f}" if value >= 0.001 else f"{max(value, 1e-300):.0e}"
