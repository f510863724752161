"""What a comparison of runs says and writes: the sentence, tables, figures, the page."""

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from kdrun import predictions, texts
from kdrun.comparison import testing
from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.reports import events, page, plots
from kdrun.reports import groups as rows

log = logging.getLogger(__name__)

_CAPTIONS = {
    "heat_maps": "Accuracy by temperature and alpha: means over seeds, n in each cell.",
    "learning_curves": "Validation accuracy by epoch: mean over seeds; bands from the lowest to the highest.",
    "accuracy_against": "Test accuracy against size and speed, with 95 % intervals.",
    "reliability": "How right the students are when they are so sure, on the test set.",
    "confusion_difference": "Which mistakes distilling adds (red) and takes away (blue), a seed.",
    "what_the_teacher_knows": "Test images that the teacher gets right and is least sure of, and what it says of them.",
}


def report(runs: pd.DataFrame, folder: Path, table: bool = True) -> dict:
    """Judge runs, show the verdict (its `table`, too), and write it below `folder`; returns it as plain values."""
    verdict = testing.judge(runs)
    log.info("%s", verdict.sentence)
    problems = runs.loc[runs["problem"] != "", ["run", "problem"]]
    if len(verdict.groups):
        shown = rows.table(verdict.groups, testing.best(verdict.groups))
        if table:
            log.info("\n%s", rows.text(shown))
        _write_tables(verdict, shown, folder)
    for note in (*verdict.controls, *verdict.refused):
        log.info("%s", note)
    for run, problem in problems.itertuples(index=False):
        log.info("not used: %s: %s", texts.one_line(run), problem)
    if len(verdict.groups):
        figures = _figures(runs[runs["problem"] == ""], verdict.groups)
        _write_figures(figures, folder)
        _write_page(runs, verdict, shown, problems, figures, folder / "report.html")
        log.info("compare: %s", folder / "report.html")
    return {
        "sentence": verdict.sentence,
        "groups": json.loads(verdict.groups.to_json(orient="index")),
        "controls": verdict.controls,
        "refused": verdict.refused,
        "not_used": problems.to_dict("records"),
    }


def _write_tables(verdict: testing.Verdict, shown: pd.DataFrame, folder: Path) -> None:
    verdict.groups.map(texts.csv).to_csv(folder / "comparison.csv", index_label="group")
    verdict.groups.to_json(folder / "comparison.json", orient="index", indent=1)
    (folder / "comparison.md").write_text(f"{texts.markdown(verdict.sentence)}\n\n{rows.markdown(shown)}\n")
    (folder / "comparison.tex").write_text(rows.latex(shown) + "\n")


def _figures(usable: pd.DataFrame, groups: pd.DataFrame) -> dict[str, Figure]:
    """The figures that these runs allow, by name. Those of single runs show the best group and its baseline."""
    best = testing.best(groups)
    runs = {"teacher": [run for found in groups.loc[groups["stage"] == "teacher", "runs"] for run in found]}
    if best is not None:
        student = groups.loc[best, "student"]
        alone = groups[(groups["stage"] == "student") & (groups["student"] == student)]
        runs |= {"distill": groups.loc[best, "runs"], "student": [run for found in alone["runs"] for run in found]}
    else:
        runs |= {"student": [run for found in groups.loc[groups["stage"] == "student", "runs"] for run in found]}
    figures = {
        "heat_maps": plots.heat_maps(groups),
        "learning_curves": plots.learning_curves(runs),
        "accuracy_against": plots.accuracy_against(groups),
        "reliability": plots.reliability(runs),
    }
    if runs.get("distill") and runs.get("student"):
        figures["confusion_difference"] = plots.confusion_difference(runs["distill"], runs["student"])
    if runs.get("distill"):
        figures["what_the_teacher_knows"] = _knowledge(usable, runs["distill"][0])
    return {name: figure for name, figure in figures.items() if figure is not None}


def _knowledge(usable: pd.DataFrame, run: str) -> Figure | None:
    row = usable[usable["run"] == run].iloc[0]
    try:
        teacher = predictions.read(row["teacher"][0])[1]
        labels, logits = predictions.read(run)
        keys = ("name", "path", "num_classes", "validation_size", "train_size", "test_size")
        given = {key: row.get(f"config.data.{key}") for key in keys}
        data = {key: None if pd.isna(value) else value for key, value in given.items()}
        sizes = {key: data[key] and int(data[key]) for key in keys[2:]}
        images = datasets.load({**data, **sizes}).test.images
    except (OSError, KeyError, TypeError, ValueError, IndexError, InputError) as error:
        log.info("compare: no figure of what the teacher knows: %s", error)
        return None
    if teacher.shape != logits.shape or len(images) != len(labels):
        return None
    return plots.what_the_teacher_knows(images, labels, teacher, logits, float(row["temperature"]))


def _write_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """As SVG and PNG below figures/, and as images in TensorBoard."""
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        for suffix in ("svg", "png"):
            figure.savefig(folder / "figures" / f"{name}.{suffix}", dpi=150)
    events.write(folder / "tensorboard", {name: folder / "figures" / f"{name}.png" for name in figures})


def _write_page(
    runs: pd.DataFrame,
    verdict: testing.Verdict,
    shown: pd.DataFrame,
    problems: pd.DataFrame,
    figures: Mapping[str, Figure],
    path: Path,
) -> None:
    usable = runs[runs["problem"] == ""]
    page.write(
        path,
        {name: (figure, _CAPTIONS[name]) for name, figure in figures.items()},
        {
            "groups": rows.html(shown),
            "differences": rows.html(_differences(usable)),
            "problems": rows.html(problems) if len(problems) else "",
        },
        title="kdrun: did distilling help?",
        sentence=verdict.sentence,
        counts=f"{len(usable)} runs in {len(verdict.groups)} groups",
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        notes=[*verdict.controls, *verdict.refused],
        commands=page.commands(usable["command"]),
    )


def _differences(usable: pd.DataFrame) -> pd.DataFrame:
    """Each run's config, as far as it is not the same for all."""
    keys = [column for column in usable.columns if column.startswith("config.")]
    different = [key for key in keys if usable[key].astype(str).nunique(dropna=False) > 1]
    return usable[["run", "group", *different]].rename(columns=lambda name: name.removeprefix("config."))
