"""Report of a comparison: the sentence, tables, figures, the page."""

import dataclasses
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdrun.comparison import exports, sentences, studies, texts
from kdrun.comparison.kinds import ALONE, DISTILLED, TEACHER
from kdrun.data.rows import Images
from kdrun.errors import InputError
from kdrun.reports import classes, confusions, devices, headline, page, plots
from kdrun.reports import groups as rows
from kdrun.reports.tables import NAMES
from kdrun.runs import predictions
from kdrun.tracking import events, links

log = logging.getLogger(__name__)

_CAPTIONS = {
    "gains": "Gain over the student alone: a point for each seed, the mean and its 95 % interval for new seeds and new "
    "test images; grey: gains that would not matter.",
    "heat_maps": "Accuracy by temperature and alpha: means over seeds, n of them in each cell.",
    "learning_curves": "Validation accuracy by epoch: mean over seeds; bands from the lowest to the highest. The axis "
    "is not stretched to the lowest tenth of a curve's epochs, the first one mostly.",
    "accuracy_against": "Test accuracy against size and, where it was measured, latency, with 95 % intervals (of "
    "Student's t over seeds). Settings that the sentence does not speak of are pale.",
    "reliability": "How right networks are when they are so sure, on the test set: above the line they could be surer, "
    "below it they are too sure. ECE: expected calibration error, mean over seeds. Bins of fewer than ten images are "
    "left out.",
    "confusion_difference": "Which mistakes distilling adds (red) and takes away (blue), a seed.",
    "devices": "Exported files: test accuracy against size, and against latency in their own runtime; the line joins "
    "those that no other one beats in both.",
    "what_the_teacher_knows": "The teacher's second thoughts: test images whose label is one of its two best classes, "
    "the second one being as likely as can be; what it says of its three best, and what the distilled student says.",
}
_BRIEFLY = {ALONE: "alone", DISTILLED: "distilled"}  # headings in the terminal


def report(
    runs: pd.DataFrame,
    folder: Path,
    margin: float,
    earlier: Sequence[Mapping] = (),
    table: bool = True,
    data: Mapping = MappingProxyType({}),
) -> dict:
    """Judge runs, show the verdict (its `table`, too), and write it below `folder`; returns it as plain values.

    `margin` is the gain that does not matter, 1 being all images; `earlier` what earlier comparisons said.
    `data` are those that the command names: pictures of test images may be taken from them.
    """
    judgement = studies.judge(runs, margin, earlier)
    said = sentences.said(judgement)
    problems = _problems(runs)
    shown = _shown(judgement, said)
    for one in said:
        log.info("%s%s", f"{one.study}: " * (len(said) > 1), one.sentence)
        for line in (*one.notes, *one.commands):
            log.info("  %s", line)
    if not said:
        log.info("%s", sentences.NOTHING)
    if table and len(shown):
        log.info("\n%s", rows.text(shown))
    files = exports.rows(runs)
    helped = any(study.verdict == "helped" for study in judgement.studies)
    judgement = judgement._replace(notes=[*exports.said(files, helped), *judgement.notes])
    if files:
        log.info("\n%s", rows.text(devices.table(files)))
    drawn = _drawn(judgement, said, data) if len(shown) else None
    by_class = _by_class(drawn, judgement.runs) if drawn else {}
    if by_class:
        classes.show(by_class["table"], _BRIEFLY)
    for note in judgement.notes:
        log.info("%s", note)
    for run, problem in problems.itertuples(index=False):
        log.info("not used: %s: %s", texts.one_line(run), problem)
    verdict = _plain_verdict(judgement, said, files)
    if drawn:
        _write_tables(verdict, judgement.groups, shown, folder)
        classes.write_csv(by_class["table"], folder / "classes.csv")
        figures = _figures(drawn, judgement, by_class["names"])
        figures |= {"devices": devices.pareto(files)} if files else {}
        _write_figures(figures, folder)
        _write_page(runs, judgement, said, shown, figures, by_class, files, folder / "report.html")
        log.info("compare: %s", folder / "report.html")
    return {**verdict, "notes": judgement.notes, "not_used": problems.to_dict("records")}


def _problems(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that are not used, and why."""
    return runs.loc[runs["problem"] != "", ["run", "problem"]]


def _shown(judgement: studies.Judgement, said: Sequence[sentences.Said]) -> pd.DataFrame:
    if judgement.groups.empty:
        return judgement.groups
    chosen = {study.chosen for study in judgement.studies if study.chosen is not None}
    return rows.table(judgement.groups, chosen, {one.digest: one.study for one in said})


def _plain_verdict(judgement: studies.Judgement, said: Sequence[sentences.Said], files: Sequence[exports.Row]) -> dict:
    """The sentences, the studies behind them, the groups and the exported files, as JSON takes them."""
    by_digest = {study.study: study for study in judgement.studies}
    told = []
    for one in said:
        study = by_digest[one.digest]
        gain = study.gain._asdict() if study.gain else {}
        parts = {"alike_gain": study.alike_gain, "untried": study.untried}
        controls = [{**control._asdict(), "gain": control.gain._asdict()} for control in study.controls]
        told.append(
            {
                **{field.name: getattr(study, field.name) for field in dataclasses.fields(study)},
                **dict.fromkeys(studies.Gain._fields),
                **{"p_single": gain.pop("p", None), **gain, "p": study.p, "controls": controls},
                **{key: part._asdict() if part else None for key, part in parts.items()},
                **{"name": one.study, "sentence": one.sentence, "notes": one.notes, "commands": one.commands},
            }
        )
    alone = len(said) == 1
    sentence = "\n".join(one.sentence if alone else f"{one.study}: {one.sentence}" for one in said)
    return _plain(
        {
            "sentence": sentence or sentences.NOTHING,
            "studies": told,
            "groups": judgement.groups.to_dict("index"),
            "exports": [row._asdict() for row in files],
        }
    )


def _plain(value):
    """Values as JSON has them: numbers of Python's own, and null for what is none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_tables(verdict: Mapping, groups: pd.DataFrame, shown: pd.DataFrame, folder: Path) -> None:
    groups.map(texts.csv).to_csv(folder / "comparison.csv", index_label="group")
    (folder / "comparison.json").write_text(json.dumps(verdict, indent=1) + "\n")
    said = verdict["sentence"].splitlines()
    said += [line for study in verdict["studies"] for line in (*study["notes"], *study["commands"])]
    (folder / "comparison.md").write_text("\n\n".join([*map(texts.markdown, said), rows.markdown(shown)]) + "\n")
    (folder / "comparison.tex").write_text(rows.latex(shown) + "\n")


class _Drawn(NamedTuple):
    """What figures and numbers by class are of: the first study, if there is one, the groups of it and of its teachers,
    run directories by kind, those of the chosen setting and its baseline, and the test images of the first run of the
    last kind, uint8 [n, height, width, channels], where they are to be had."""

    study: studies.Study | None
    groups: pd.DataFrame
    runs: dict[str, list[str]]
    images: Images | None


def _drawn(judgement: studies.Judgement, said: Sequence[sentences.Said], data: Mapping) -> _Drawn:
    first = said[0].digest if said else ""
    study = next((study for study in judgement.studies if study.study == first), None)
    groups, runs = judgement.groups, judgement.runs
    if study:
        taught = {weights for each in runs.loc[runs["study"] == first, "taught_by"] for weights in each}
        teachers = set(runs.loc[runs["weights"].isin(taught), "group"])
        groups = groups[(groups["study"] == first) | groups.index.isin(teachers)]
    alone = [study.baseline] if study and study.baseline else groups.index[groups["stage"] == ALONE]
    kinds = {TEACHER: groups.index[groups["stage"] == TEACHER], ALONE: alone}
    kinds[DISTILLED] = [study.chosen] if study and study.chosen else []
    shown = {kind: [run for name in names for run in groups.loc[name, "runs"]] for kind, names in kinds.items()}
    drawn = next((each[0] for each in reversed(shown.values()) if each), None)
    return _Drawn(study, groups, shown, None if drawn is None else confusions.test_images(drawn, data))


def _figures(drawn: _Drawn, judgement: studies.Judgement, names: Sequence[str]) -> dict[str, Figure]:
    """The figures that these runs allow, by name; classes have `names`. What accuracy costs is of all studies."""
    study, groups, shown, _ = drawn
    runs, studied = judgement.runs, judgement.studies
    teachers = judgement.groups.index[judgement.groups["stage"] == TEACHER]
    spoken_of = {*teachers, *(each.chosen for each in studied), *(each.baseline for each in studied)}
    spoken_of |= {control.group for each in studied for control in each.controls}
    candidates = groups.index[groups["gain"].notna() & (groups["kind"] == DISTILLED)]
    identities = sentences.identities(runs[runs["group"].isin(candidates)])
    figures = {
        "gains": plots.gains(
            groups,
            study.margin if study else 0.0,
            [study.chosen] if study and study.chosen else [],
            {name: sentences.differing(identities, name) for name in identities},
        ),
        "heat_maps": plots.heat_maps(groups),
        "learning_curves": plots.learning_curves(shown),
        "accuracy_against": devices.accuracy_against(
            judgement.groups, spoken_of if studied else judgement.groups.index
        ),
        "reliability": plots.reliability(shown),
    }
    if shown[DISTILLED] and shown[ALONE]:
        figures["confusion_difference"] = plots.confusion_difference(shown[DISTILLED], shown[ALONE], names)
    if shown[DISTILLED]:
        figures["what_the_teacher_knows"] = _knowledge(runs, drawn, names)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _knowledge(usable: pd.DataFrame, drawn: _Drawn, names: Sequence[str]) -> Figure | None:
    run = drawn.runs[DISTILLED][0]
    row = usable[usable["run"] == run].iloc[0]
    if not isinstance(row["identity"].get("teacher", [None])[0], Mapping):
        return None  # of a file, which keeps nothing of the test images
    try:
        tested, teacher = predictions.read(row["teacher"][0])
    except (IndexError, InputError) as error:
        log.info("compare: no figure of what the teacher knows: %s", error)
        return None
    labels, logits = predictions.read(run)
    if drawn.images is None or not np.array_equal(tested, labels):  # a run may have other test images
        return None
    return plots.what_the_teacher_knows(drawn.images, labels, teacher, logits, float(row["temperature"]), names)


def _by_class(drawn: _Drawn, runs: pd.DataFrame) -> dict[str, Any]:
    """What the page says of single classes; nothing where there are no runs."""
    test = classes.tested(drawn.runs)
    if test is None:
        return {}
    kind = list(test.predicted)[-1]
    first, predicted = drawn.runs[kind][0], test.predicted[kind]
    given = runs.loc[runs["run"] == first].iloc[0].get("class_names")
    names = list(given) if given else [str(number) for number in range(test.num_classes)]
    table = classes.by_class(test, names)
    gains = [abs(row.gain) for row in table.rows if np.isfinite(row.gain)]
    return {
        "table": table,
        "widest": (max(gains) or 1.0) if gains else None,  # gain, which has the longest bar
        "names": names,
        "long": max(map(len, names)) > 3,
        "of": NAMES[kind],
        "first": first,
        "networks": len(predicted),
        "count": "{:,.0f}" if len(predicted) == 1 else "{:,.1f}",
        "matrix": confusions.matrix(test.labels, predicted, test.num_classes),
        "frequent": confusions.most_frequent(test.labels, predicted, names),
        "mistakes": [] if drawn.images is None else confusions.mistakes(first, drawn.images, names),
    }


def _write_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """As SVG and PNG below figures/, and as images in TensorBoard."""
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        for suffix in ("svg", "png"):
            figure.savefig(folder / "figures" / f"{name}.{suffix}", dpi=150)
    events.write(folder / links.EVENTS, {name: folder / "figures" / f"{name}.png" for name in figures})


def _write_page(
    runs: pd.DataFrame,
    judgement: studies.Judgement,
    said: Sequence[sentences.Said],
    shown: pd.DataFrame,
    figures: Collection[str],
    by_class: Mapping,
    files: Sequence[exports.Row],
    path: Path,
) -> None:
    usable, problems = runs[runs["problem"] == ""], _problems(runs)
    page.write(
        path,
        {name: (path.parent / "figures" / f"{name}.svg", _CAPTIONS[name]) for name in figures},
        {"groups": shown, "differences": _differences(usable), "problems": problems, "files": devices.table(files)},
        title="kdrun: did distilling help?",
        headlines=headline.headlines(judgement, said, files),
        columns=rows.looked_at_first(shown),
        drawn=said[0].study if len(said) > 1 else "",
        counts=f"{len(usable)} runs in {len(judgement.groups)} groups",
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        notes=judgement.notes,
        by_class=by_class,
        names_of_kinds=NAMES,
        commands=page.commands(usable["command"]),
    )


def _differences(usable: pd.DataFrame) -> pd.DataFrame:
    """Each run's config, as far as it is not the same for all."""
    keys = [column for column in usable.columns if column.startswith("config.")]
    different = [key for key in keys if usable[key].astype(str).nunique(dropna=False) > 1]
    return usable[["run", "group", *different]].rename(columns=lambda name: name.removeprefix("config."))
