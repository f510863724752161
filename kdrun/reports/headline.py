"""What a comparison's page begins with: the verdict in large letters, and the few numbers that it is about."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kdrun.comparison import exports, sentences
from kdrun.comparison.studies import Judgement, Study

_SIGNS = {"helped": "▲", "harm": "▼", "no gain that matters": "=", "not comparable": "–"}  # of all others: ?


class Number(NamedTuple):
    """A number with what it is of, and a few words below it."""

    name: str
    value: str
    note: str


class Headline(NamedTuple):
    """A study's verdict: its sentence in three parts, the claim, what it rests on, and the rest; a sign, and a word for
    its colour, which never says anything alone; numbers, further lines, commands."""

    study: str
    tone: str
    sign: str
    claim: str
    basis: str
    rest: str
    numbers: list[Number]
    notes: list[str]
    commands: list[str]


def headlines(judgement: Judgement, said: Sequence[sentences.Said], files: Sequence[exports.Row]) -> list[Headline]:
    """Each study's, in the order in which they are said; one that there is nothing to compare where there is none."""
    if not said:
        return [Headline("", "", _SIGNS["not comparable"], sentences.NOTHING, "", "", [], [], [])]
    by_digest = {study.study: study for study in judgement.studies}
    return [_headline(one, by_digest[one.digest], judgement, files) for one in said]


def _headline(one: sentences.Said, study: Study, judgement: Judgement, files: Sequence[exports.Row]) -> Headline:
    tone = study.verdict if study.verdict in ("helped", "harm") else ""
    sign = _SIGNS.get(study.verdict, "?")
    return Headline(
        *(one.study, tone, sign, *parts(one.sentence)),
        *(_numbers(study, judgement, files), one.notes, one.commands),
    )


def parts(sentence: str) -> tuple[str, str, str]:
    """A sentence's claim, what stands in its first parentheses, and what follows these; the last two may be empty."""
    claim, _, further = sentence.partition(" (")
    depth = 1
    for place, character in enumerate(further):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            rest = further[place + 1 :].lstrip(";:. ")
            return claim, f"{further[:place]}.", rest[:1].upper() + rest[1:]
    return claim, further, ""


def _numbers(study: Study, judgement: Judgement, files: Sequence[exports.Row]) -> list[Number]:
    """The gain, the accuracies that it lies between, and what the student costs."""
    if study.gain is None:
        return []
    groups, gain = judgement.groups, study.gain
    chosen, alone = groups.loc[study.chosen], groups.loc[study.baseline]
    found = [
        Number("gain, points", sentences.points(gain.gain), sentences.interval(study, gain)),
        _accuracy("student alone", [alone]),
        _accuracy("distilled student", [chosen]),
    ]
    taught = {
        weights for each in judgement.runs.loc[judgement.runs["group"] == study.chosen, "taught_by"] for weights in each
    }
    names = judgement.runs.loc[judgement.runs["weights"].isin(taught), "group"].unique()
    teachers = [groups.loc[name] for name in names]
    found += [_accuracy("teacher", teachers)] if teachers else []
    found.append(_size(chosen, teachers))
    own = [row for row in files if row.format and row.run in chosen["runs"]]
    if own:
        row = min(own, key=lambda each: each.bytes)
        found.append(
            Number("smallest file", f"{row.bytes / 1e3:,.0f} kB", f"{Path(row.file).name}, {100 * row.accuracy:.2f} %")
        )
    return found


def _accuracy(name: str, groups: Sequence[pd.Series]) -> Number:
    mean = sum(group["test_accuracy"] for group in groups) / len(groups)
    seeds = int(sum(group["seeds"] for group in groups))
    return Number(name, f"{100 * mean:.2f} %", f"test accuracy, {seeds} {'seed' if seeds == 1 else 'seeds'}")


def _size(chosen: pd.Series, teachers: Iterable[pd.Series]) -> Number:
    largest = max((group["parameters"] for group in teachers), default=0)
    share = 100 * chosen["parameters"] / largest if largest else 0.0
    note = f"{share:.{0 if share >= 10 else 1}f} % of the teacher's {largest:,.0f}" if largest else ""
    return Number("student's parameters", f"{chosen['parameters']:,.0f}", note)
