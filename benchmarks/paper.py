"""The paper's experiments, held against its numbers: a table from run directories, written into docs/results.md.

    python benchmarks/paper.py outputs

Reads the sweeps that the presets in conf/experiment/paper name in their first lines, whatever epochs and seeds they
had, and the runs of stage=adjust_bias. What was not run is said to be so. A published count is one run: it is
consistent with ours where it lies in the 95 % prediction interval of one more run, which counts test images, too. A
claim is reproduced, or not, where the 95 % interval of the mean over seeds says so, and else not decided.
"""

import itertools
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from kdrun.comparison import intervals
from kdrun.evaluation import metrics
from kdrun.runs import predictions
from kdrun.runs import record as runs

DOCS = Path(__file__).resolve().parents[1] / "docs"
_SEEDS = 3  # that a verdict needs
_ALIKE = 20  # test errors: what compare.margin is, of 10,000 images
BEGIN, END = "<!-- written by benchmarks/paper.py -->", "<!-- end of what benchmarks/paper.py writes -->"


class Found(NamedTuple):
    """What an experiment came to: in words, how many seeds that is of, a verdict, and the runs."""

    ours: str
    n: int
    verdict: str
    records: Sequence[Mapping]


def sweep(outputs: Path, name: str) -> list[dict]:
    """The completed runs of a sweep, those of a pipeline each with its parts' records by stage, and all their parts."""
    found = []
    for path in sorted((outputs / "sweeps" / name).glob("*/run.json")):
        record = runs.read(path.parent)
        if record["status"] != "completed":
            continue
        record["path"], results = path.parent, record["results"]
        parts = [*results.get("runs", ()), *results.get("specialists", ()), results.get("generalist")]
        record["parts"] = [{**runs.read(part["run"]), "path": Path(part["run"])} for part in parts if part]
        record |= {part["stage"]: part for part in record["parts"]}
        found.append(record)
    return found


def errors(records: Sequence[Mapping], which: str = "best") -> list[int]:
    return [record["results"]["test"][which]["errors"] for record in records]


def seeds(records: Sequence[Mapping]) -> int:
    """How many different ones."""
    return len({record["config"]["seed"] for record in records})


def spread(values: Sequence[float], form: str = ".1f") -> str:
    std = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{std}"


def estimated(values: Sequence[float], form: str = "+.2f") -> str:
    low, high = intervals.mean(values)
    return f"{np.mean(values):{form}} (95 % {low:{form}} to {high:{form}})"


def against(values: Sequence[float], paper: float, variance: float) -> str:
    """Whether the paper's single run could be one more of ours: whether it lies in the 95 % prediction interval of one.

    `variance` is that of other test images.
    """
    if len(values) < 2:
        return "one run: no verdict"
    low, high = intervals.one_more(values, variance)
    where = "consistent" if low <= paper <= high else "ours are fewer" if paper > high else "ours are more"
    return f"{where} ({low:.0f} to {high:.0f})"


def claimed(low: float, high: float, least: float = 0.0) -> str:
    """A claim that something is above `least`, by its interval."""
    return "reproduced" if low > least else "not reproduced" if high < least else "not decided"


def counted(records: Sequence[Mapping], paper: int) -> Found | None:
    """Test errors against the paper's."""
    if not records:
        return None
    found = errors(records)
    return Found(f"{spread(found)} errors", len(found), against(found, paper, np.mean(found)), records)


def teacher(outputs: Path) -> Found | None:
    return counted(sweep(outputs, "paper_teacher"), 67)


def student(outputs: Path) -> Found | None:
    """Those of paper/distilled's pipelines are the same."""
    alone = {each["student"]["path"]: each["student"] for each in sweep(outputs, "paper_distilled")}
    return counted(sweep(outputs, "paper_student") or list(alone.values()), 146)


def distilled(outputs: Path) -> Found | None:
    return counted([each["distill"] for each in sweep(outputs, "paper_distilled")], 74)


def adjusted(outputs: Path, name: str) -> list[tuple[Mapping, Mapping]]:
    """A sweep's distilled students, each with its results after stage=adjust_bias."""
    shifted = {}
    for path in outputs.glob("adjust_bias/*/run.json"):
        record = runs.read(path.parent)
        if record["status"] == "completed":
            shifted[record["adjusted"]["weights_sha256"]] = record["results"]
    students = [each["distill"] for each in sweep(outputs, name)]
    found = [(each, shifted.get(each["files"]["checkpoints/best.weights.h5"])) for each in students]
    return [(each, results) for each, results in found if results]


def no_threes(outputs: Path) -> Found | None:
    found = adjusted(outputs, "paper_no_threes")
    if not found:
        return None
    before, after = ([results["test"][when]["errors"] for _, results in found] for when in ("before", "best"))
    right = [100 * results["test"]["best"]["accuracy_of_classes"] for _, results in found]
    said = f"{spread(before)} → {spread(after)} errors, {spread(right, '.2f')} % of threes"
    threes = 1010  # among the test images; in their errors, whose number is what an interval is of
    wrong = [threes * (1 - each / 100) for each in right]
    verdict = (
        f"of threes {against(wrong, threes * 0.014, np.mean(wrong))}, of all {against(after, 109, np.mean(after))}"
    )
    return Found(said, len(found), verdict, [each for each, _ in found])


def only_7_8(outputs: Path) -> Found | None:
    found = adjusted(outputs, "paper_only_7_8")
    if not found:
        return None
    before, after = ([results["test"][when]["errors"] for _, results in found] for when in ("before", "best"))
    verdict = against(after, 1320, np.mean(after))
    said = f"{spread([each / 100 for each in before])} → {spread([each / 100 for each in after])} % errors"
    return Found(said, len(found), verdict, [each for each, _ in found])


def temperatures(outputs: Path) -> Found | None:
    of_units = {800: sweep(outputs, "paper_temperatures"), 30: sweep(outputs, "paper_temperatures_30")}
    curves: dict[int, dict[float, dict[int, int]]] = {}
    found = []
    for units, records in of_units.items():
        for each in records:
            if each["config"]["student"]["model"]["hidden_units"][0] == units:  # a sweep may hold other sizes, too
                wrong = errors([each["distill"]])[0]
                of_temperature = curves.setdefault(units, {}).setdefault(each["config"]["temperature"], {})
                of_temperature[each["config"]["seed"]] = wrong
                found.append(each)
    if not found:
        return None
    said, verdicts = [], []
    for units, curve in sorted(curves.items(), reverse=True):
        listed = ", ".join(f"{t:g}: {spread(list(curve[t].values()))}" for t in sorted(curve))
        best = min(curve, key=lambda t: np.mean(list(curve[t].values())))
        if units <= 30:
            claim, verdict = "2.5 to 4 best", _best_within(curve, 2.5, 4)
        else:
            claim, verdict = f"T > 8 alike, within {_ALIKE} errors", _are_alike({t: curve[t] for t in curve if t > 8})
        verdicts.append(verdict)
        said.append(f"{units} units, errors by T: {listed}; best {best:g}; {claim}: {verdicts[-1]}")
    panels = [
        {f"{units} units a layer": {t: list(of_seeds.values()) for t, of_seeds in curve.items()}}
        for units, curve in sorted(curves.items(), reverse=True)
    ]
    draw("temperatures", panels, "test errors of 10,000", "temperature")
    return Found("; ".join(said), seeds(found), ", ".join(dict.fromkeys(verdicts)), found)


def _best_within(curve: Mapping[float, Mapping[int, float]], low: float, high: float) -> str:
    """Whether the best temperature from low to high has fewer errors than every other one."""
    inside = min((t for t in curve if low <= t <= high), key=lambda t: np.mean(list(curve[t].values())), default=None)
    others = [t for t in curve if not low <= t <= high]
    if inside is None or not others:
        return "not decided"
    fewer = [intervals.mean(paired(curve[t], curve[inside])) for t in others]
    return claimed(min(low for low, _ in fewer), min(high for _, high in fewer))


def _are_alike(curve: Mapping[float, Mapping[int, float]]) -> str:
    """Whether no two temperatures are further apart than what does not matter."""
    apart = [intervals.mean(paired(curve[a], curve[b])) for a, b in itertools.combinations(sorted(curve), 2)]
    if any(low > _ALIKE or high < -_ALIKE for low, high in apart):
        return "not reproduced"
    return "reproduced" if apart and all(low >= -_ALIKE and high <= _ALIKE for low, high in apart) else "not decided"


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Differences, seed by seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def draw(name: str, panels: Sequence[Mapping[str, Mapping[float, Sequence[float]]]], ylabel: str, xlabel: str) -> None:
    """Means and bands of a standard deviation of each panel's curves, into docs/figures."""
    figure = Figure((1 + 5 * len(panels), 4), layout="constrained")
    for axes, curves in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, curve in curves.items():
            at = sorted(curve)
            mean = np.array([np.mean(curve[x]) for x in at])
            std = np.array([np.std(curve[x], ddof=1) if len(curve[x]) > 1 else 0.0 for x in at])
            axes.plot(at, mean, marker="o", label=label)
            axes.fill_between(at, mean - std, mean + std, alpha=0.2)
        ticks = sorted({x for curve in curves.values() for x in curve})
        axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel, xticks=ticks, xticklabels=map("{:g}".format, ticks))
        axes.minorticks_off()
        axes.legend()
    figure.savefig(DOCS / "figures" / f"paper_{name}.png", dpi=120)


def logit_matching(outputs: Path) -> Found | None:
    matched = {each["config"]["seed"]: each["distill"] for each in sweep(outputs, "paper_logit_mse")}
    found = [each for each in sweep(outputs, "paper_logit_matching") if each["config"]["seed"] in matched]
    if not found:
        return None
    apart: dict[float, dict[int, float]] = {}
    wrong: dict[float, list[float]] = {}
    for each in found:
        temperature = each["config"]["temperature"]
        z, v = (centred(one["path"]) for one in (each["distill"], matched[each["config"]["seed"]]))
        apart.setdefault(temperature, {})[each["config"]["seed"]] = distance(z, v)
        wrong.setdefault(temperature, []).append(errors([each["distill"]])[0])
    listed = ", ".join(
        f"{temperature:g}: {spread(list(apart[temperature].values()), '.3f')} ({spread(wrong[temperature])})"
        for temperature in sorted(apart)
    )
    pairs = itertools.combinations([centred(each["path"]) for each in matched.values()], 2)
    said = (
        f"distance (root mean square) of test logits from those of logit_mse, and errors, by T: {listed}; "
        f"errors of logit_mse: {spread(errors(list(matched.values())))}; its seeds' distance from each other: "
        f"{spread([distance(z, v) for z, v in pairs], '.3f')}"
    )
    draw(
        "logit_matching",
        [{"kd": {t: list(of_seeds.values()) for t, of_seeds in apart.items()}}],
        "distance of test logits from logit_mse's",
        "temperature",
    )
    # each temperature's distances, seed by seed, less those of the next higher one
    falls = [intervals.mean(paired(apart[a], apart[b])) for a, b in itertools.pairwise(sorted(apart))]
    low, high = np.min(falls, axis=0) if falls else (math.nan, math.nan)
    return Found(said, seeds(found), claimed(low, high), found)


def distance(z: np.ndarray, v: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean((z - v) ** 2)))


def centred(run_dir: Path) -> np.ndarray:
    """A run's test logits with rows of mean zero."""
    z = predictions.read(run_dir)[1].astype(np.float64)
    return z - z.mean(axis=1, keepdims=True)


def ensemble(outputs: Path) -> Found | None:
    said, verdicts, every = [], [], []
    for ending, data in (("", "MNIST"), ("_fashion", "Fashion-MNIST")):
        members, students = sweep(outputs, f"paper_members{ending}"), sweep(outputs, f"paper_ensemble{ending}")
        if not members or not students:
            continue
        answers = [predictions.read(each["path"]) for each in members]
        together = metrics.evaluate(metrics.ensemble([z for _, z in answers]), answers[0][0])["errors"]
        single, found = np.mean(errors(members)), errors(students)
        kept = [100 * (single - each) / (single - together) for each in found]
        said.append(
            f"{data}: {spread(errors(members))} errors for one, {together} for {len(members)}, {spread(found)} "
            f"distilled: {estimated(kept, '.0f')} % of the gain kept"
        )
        verdicts.append(f"{data} {claimed(*intervals.mean(kept), 50)}")
        every += students
    if not said:
        return None
    return Found("; ".join(said), seeds(every), ", ".join(verdicts), every)


def few_labels(outputs: Path) -> Found | None:
    said, verdicts, every = [], [], []
    for name, data in (("paper_few_labels", "MNIST"), ("paper_few_labels_fashion", "Fashion-MNIST")):
        found = sweep(outputs, name)
        if not found:
            continue
        accuracy = {
            (stage, which): [100 * each[stage]["results"]["test"][which]["accuracy"] for each in found]
            for stage in ("student", "distill")
            for which in ("best", "last")
        }
        whole = 100 * np.mean([each["teacher"]["results"]["test"]["best"]["accuracy"] for each in found])
        hard, soft = (
            f"{spread(accuracy[stage, 'best'], '.2f')} ({spread(accuracy[stage, 'last'], '.2f')})"
            for stage in ("student", "distill")
        )
        said.append(f"{data}, % right with early stopping (without): hard {hard}, soft {soft}, teacher {whole:.2f}")
        gained = np.subtract(accuracy["distill", "best"], accuracy["student", "best"])  # of one pipeline, with one seed
        verdicts.append(f"{data} {claimed(*intervals.mean(gained))}")
        every += found
    if not said:
        return None
    return Found("; ".join(said), seeds(every), ", ".join(verdicts), every)


def specialists(outputs: Path) -> Found | None:
    """By how long the specialists were trained; the longest decides."""
    found = sweep(outputs, "paper_specialists") + sweep(outputs, "paper_specialists_20")
    said, verdict = [], ""
    for epochs in sorted({each["config"]["specialist"]["epochs"] for each in found}):
        accuracy = {
            name: np.array(
                [
                    100 * each["results"][name]["test"]["accuracy"]
                    for each in found
                    if each["config"]["specialist"]["epochs"] == epochs
                ]
            )
            for name in ("generalist", "combined")
        }
        gains = accuracy["combined"] - accuracy["generalist"]
        said.append(
            f"specialists of {epochs} epochs: {spread(accuracy['generalist'], '.2f')} → "
            f"{spread(accuracy['combined'], '.2f')} %: {estimated(gains)} points, n = {len(gains)}"
        )
        verdict = claimed(*intervals.mean(gains))
    return Found("; ".join(said), seeds(found), verdict, found) if found else None


def keras_example(outputs: Path) -> Found | None:
    found = sweep(outputs, "paper_keras")
    if not found:
        return None
    curves: dict[str, dict[int, dict[Path, float]]] = {}
    for each in found:
        scaled = "T²" if each["config"]["objective"]["kd"]["scale_by_temperature_squared"] else "no T²"
        for stage in ("teacher", "student", "distill"):
            name = {"distill": f"distilled, {scaled}", "student": "alone"}.get(stage, stage)
            epochs = each[stage]["config"][stage]["epochs"]
            accuracy = 100 * each[stage]["results"]["test"]["best"]["accuracy"]
            # by path: a run that several pipelines took counts once
            curves.setdefault(name, {}).setdefault(epochs, {})[each[stage]["path"]] = accuracy
    listed = {name: {epochs: list(of.values()) for epochs, of in curve.items()} for name, curve in curves.items()}
    said = ", ".join(
        f"{name}, {epochs} epochs {spread(values, '.2f')} %"
        for name, curve in listed.items()
        for epochs, values in sorted(curve.items())
    )
    draw("keras_example", [listed], "test accuracy, %", "epochs")
    by_seed = {
        stage: {
            each["config"]["seed"]: 100 * each[stage]["results"]["test"]["best"]["accuracy"]
            for each in found
            if each["config"]["objective"]["kd"]["scale_by_temperature_squared"]
            and each[stage]["config"][stage]["epochs"] == 3
        }
        for stage in ("student", "distill")
    }
    worse = paired(by_seed["student"], by_seed["distill"])  # as in the example's own run
    return Found(said, seeds(found), claimed(*intervals.mean(worse)), found)


EXPERIMENTS: list[tuple[str, str, Callable[[Path], Found | None]]] = [
    ("teacher", "67 errors", teacher),
    ("student", "146 errors", student),
    ("distilled", "74 errors", distilled),
    ("temperatures", "T > 8 all alike at 300 or more units; 2.5 to 4 best at 30", temperatures),
    ("no_threes", "206 → 109 errors, 98.6 % of threes (shift chosen on the test set)", no_threes),
    ("only_7_8", "47.3 → 13.2 % errors (shift chosen on the test set)", only_7_8),
    ("ensemble", "speech: 58.9 % for one, 61.1 % for ten, 60.8 % distilled: most of the gain", ensemble),
    ("few_labels", "speech: 44.5 % hard, 57.0 % soft, 58.9 % with all labels", few_labels),
    ("specialists", "JFT: 25.0 → 26.1 %", specialists),
    ("logit_matching", "§2.1: the same for T → ∞", logit_matching),
    ("keras_example", "97.81 % teacher, 97.78 % alone, 96.92 % distilled: worse than alone", keras_example),
]


def commands(records: Sequence[Mapping]) -> str:
    """The command that a sweep's runs have in common, and their commits."""
    words = [shlex.split(record["command"] or "") for record in records]
    common = [word for word in words[0] if all(word in each for each in words)]
    common = [word for word in common if not word.startswith(("outputs=", "tensorboard.", "measure_latency="))]
    return f"`{shlex.join(common)}`"


def main() -> None:
    outputs = Path(sys.argv[1])
    head = ["preset", "paper", "here", "n", "verdict", "in all runs' commands", "commit", "machine", "minutes"]
    lines = [BEGIN, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, paper, measure in EXPERIMENTS:
        found = measure(outputs)
        if found is None:
            lines.append(f"| `paper/{name}` | {paper} | not run yet | | | | | | |")
            continue
        commits = ", ".join(sorted({short(str(record.get("git_commit"))) for record in found.records}))
        machines = {"{cpus} cores, {machine}".format(**record["host"]) for record in found.records}
        took: dict[Path, float] = {}
        for record in found.records:
            took |= seconds(record)
        minutes = sum(took.values()) / 60
        verdict = found.verdict + (" (too few seeds to say)" if found.n < _SEEDS else "")
        lines.append(
            f"| `paper/{name}` | {paper} | {found.ours} | {found.n} | {verdict} | {commands(found.records)} | "
            f"{commits} | {', '.join(sorted(machines))} | {minutes:.0f} |"
        )
    text = (DOCS / "results.md").read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    (DOCS / "results.md").write_text(before + "\n".join([*lines, "", END]) + after)
    print("\n".join(lines))


def short(commit: str) -> str:
    """Its first digits, and whether files were changed since."""
    return commit[:7] + "-dirty" * commit.endswith("-dirty")


def seconds(record: Mapping) -> dict[Path, float]:
    """Of training, by run directory: its parts', or its own."""
    return {part["path"]: part["results"]["training_seconds"] for part in record.get("parts") or [record]}


if __name__ == "__main__":
    main()
