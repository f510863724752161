"""Did distilling help? Groups over seeds, each held against the same student trained alone."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from kdrun import predictions

MEASURED = (
    *("parameters", "multiply_adds", "weights_bytes", "training_seconds", "validation_accuracy"),
    *("validation_cross_entropy", "test_accuracy", "errors", "count", "cross_entropy", "brier", "calibration_error"),
    *("teacher_agreement", "teacher_kl"),
)
_ALIKE = ("stage", "kind", "model", "student", "epochs", "held_out", "steps", "objective", "control")
_ALIKE += ("temperature", "alpha")
_SIGNIFICANT = 0.05
_RESAMPLES = 9999


class Verdict(NamedTuple):
    """The sentence, what it rests on: the groups with their tests, and what else is to be said: how the best group
    stands against controls, and baselines that were refused."""

    sentence: str
    groups: pd.DataFrame
    controls: list[str]
    refused: list[str]


def judge(runs: pd.DataFrame) -> Verdict:
    """Compare every group of distilled students with its baseline; the best by validation is the one spoken of."""
    usable, repeated = runs[runs["problem"] == ""], []
    usable = usable[usable["stage"].isin(["teacher", "student", "distill"])] if len(usable) else usable
    if len(usable):  # the same seed twice is no second seed
        again = usable.duplicated(["group", "seed"])
        repeated = [
            f"{run} is not counted: it has the seed of another run of its group" for run in usable[again]["run"]
        ]
        usable = usable[~again]
    groups = grouped(usable)
    distilled = groups[groups["stage"] == "distill"].copy() if len(groups) else groups
    refused, tested = repeated, {}
    for name, group in distilled.iterrows():
        alone = usable[(usable["stage"] == "student") & (usable["student"] == group["student"])]
        if alone.empty:
            refused += _refused(usable, name)
            continue
        tested[name] = compared(usable[usable["group"] == name], alone)
    tests = pd.DataFrame.from_dict(tested, orient="index")
    if len(tests) and tests["p_t"].notna().any():
        tests["p"] = holm(tests["p_t"])
    groups = groups.join(tests)
    return Verdict(_sentence(groups, usable, tests), groups, _controls(groups, usable), sorted(set(refused)))


def grouped(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each group of runs that differ only in seed: n, means, and std and 95 % interval of test accuracy.

    The interval is a bootstrap over seeds; with one seed there is none.
    """
    rows = {}
    for name, group in runs.groupby("group", sort=False) if len(runs) else ():
        first = group.iloc[0]
        accuracy = group["test_accuracy"].to_numpy(float)
        low, high = interval(accuracy)
        rows[name] = {
            **{key: first[key] for key in _ALIKE},
            "overlap": int(group["overlap"].max()) if "overlap" in group else 0,
            "made_by": ", ".join(sorted(set(group["made_by"]))) if "made_by" in group else "",
            "n": len(group),
            **{key: pd.to_numeric(group[key]).mean() for key in MEASURED},
            **{key: pd.to_numeric(group[key]).mean() for key in group.columns if key.startswith("latency_")},
            "test_accuracy_std": accuracy.std(ddof=1) if len(group) > 1 else np.nan,
            "test_accuracy_low": low,
            "test_accuracy_high": high,
            "runs": list(group["run"]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean, by bootstrap (percentiles); NaN for a single value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def compared(distilled: pd.DataFrame, alone: pd.DataFrame) -> dict:
    """Tests of a group against its baseline, paired over the seeds that both have.

    gain (of test accuracy; its std and interval over seeds), the p-values of a paired t-test and of Wilcoxon's signed
    ranks, and McNemar's exact one over the test images of all pairs: among those that only one of the two gets right.
    """
    pairs = distilled.merge(alone, on="seed", suffixes=("", "_alone")).drop_duplicates("seed")
    gains = (pairs["test_accuracy"] - pairs["test_accuracy_alone"]).to_numpy(float)
    better = worse = 0
    for _, pair in pairs.iterrows():
        right, right_alone = (_right(pair[run]) for run in ("run", "run_alone"))
        better += int(np.count_nonzero(right & ~right_alone))
        worse += int(np.count_nonzero(~right & right_alone))
    low, high = interval(gains)
    several, differ = len(gains) > 1, bool(np.any(gains))
    spread = several and np.ptp(gains) > 0
    ranks = stats.wilcoxon(gains).pvalue if several and differ else 1.0 if several else np.nan
    return {
        "pairs": len(gains),
        "gain": gains.mean() if len(gains) else np.nan,
        "gain_std": gains.std(ddof=1) if several else np.nan,
        "gain_low": low,
        "gain_high": high,
        # gains that are all the same have no spread, which t takes for certainty, however few they are
        "p_t": stats.ttest_1samp(gains, 0.0).pvalue if spread else ranks,
        "p_wilcoxon": ranks,
        "p_mcnemar": stats.binomtest(better, better + worse).pvalue if better + worse else 1.0,
        "better": better,
        "worse": worse,
        "accuracy_alone": pairs["test_accuracy_alone"].mean(),
    }


def holm(p_values: pd.Series) -> pd.Series:
    """p-values corrected for how many there are (Holm 1979): each times the number of those not below it, monotone."""
    ordered = p_values.dropna().sort_values()
    count = len(ordered)
    corrected = np.maximum.accumulate(np.minimum(1.0, ordered.to_numpy() * (count - np.arange(count))))
    return pd.Series(corrected, ordered.index).reindex(p_values.index)


def best(groups: pd.DataFrame) -> str | None:
    """The group of distilled students, no control, with the highest mean validation accuracy, lower cross-entropy among
    equals."""
    distilled = groups[groups["kind"] == "distill"] if len(groups) else groups
    if distilled.empty:
        return None
    by = ["held_out", "validation_accuracy", "validation_cross_entropy"]  # what was trained on says nothing
    order = distilled.sort_values(by, ascending=[False, False, True])
    return order.index[0]


def _right(run_dir: str) -> np.ndarray:
    labels, logits = predictions.read(run_dir)
    return np.argmax(logits, axis=1) == labels


def _refused(usable: pd.DataFrame, name: str) -> list[str]:
    """Why students trained alone are no baseline of a group."""
    ours = usable[usable["group"] == name].iloc[0]["identity"]
    said = []
    for run, theirs in usable.loc[usable["stage"] == "student", ["run", "identity"]].itertuples(index=False):
        other = [key for key, value in theirs.items() if key != "stage" and ours.get(key) != value]
        said.append(f"{run} is no baseline of group {name}: it has another {', '.join(other)}")
    return said or [f"group {name} has no baseline: the same student, trained alone, is not among the runs"]


def _sentence(groups: pd.DataFrame, usable: pd.DataFrame, tests: pd.DataFrame) -> str:
    name = best(groups)
    if name is None:
        return "Nothing to compare: no distilled student is among the completed runs."
    chosen = groups.loc[name]
    how = "chosen on validation" if chosen["held_out"] else "trained on the validation images, too"
    if chosen["overlap"]:
        how += f", {chosen['overlap']:,} of whose images its teacher has trained on"
    where = f"T = {chosen['temperature']:g}, alpha = {chosen['alpha']:g}, {how}"
    if groups.loc[groups["kind"] == "distill", "objective"].nunique() > 1 or chosen["objective"] != "kd":
        where = f"{chosen['objective']}, {where}"
    if not len(tests) or name not in tests.index or not chosen["pairs"]:
        return f"Not enough runs to tell: the same student trained alone is missing. {_advice(usable, name)}"
    if chosen["pairs"] < 2:
        gain = f"{100 * chosen['gain']:+.2f} points in one seed"
        return f"Not enough seeds to tell ({gain}; {where}): {_advice(usable, name)}"
    gain = f"{100 * chosen['gain']:+.2f} ± {100 * chosen['gain_std']:.2f} points test accuracy over the student alone"
    basis = f"{chosen['pairs']:.0f} seeds, p = {_p(chosen['p'])}; {where}"
    significant = chosen["p"] < _SIGNIFICANT
    if significant and chosen["gain"] > 0:
        return f"Distilling helped: {gain} ({basis}){_gap(groups, chosen)}."
    if significant:
        return f"Distilling did harm: {gain} ({basis})."
    return f"No evidence that distilling helped: {gain} ({basis})."


def _controls(groups: pd.DataFrame, usable: pd.DataFrame) -> list[str]:
    """How the best group stands against each control of the same student: what is left is the teacher's knowledge."""
    name = best(groups)
    if name is None:
        return []
    of_student = groups[(groups["kind"] == "control") & (groups["student"] == groups.loc[name, "student"])]
    ours = usable[usable["group"] == name]
    found = {control: compared(ours, usable[usable["group"] == control]) for control in of_student.index}
    corrected = holm(pd.Series({control: tests["p_t"] for control, tests in found.items()}, dtype=float))
    return [
        f"Over the control '{groups.loc[control, 'control']}': {100 * tests['gain']:+.2f} ± "
        f"{100 * tests['gain_std']:.2f} points test accuracy ({tests['pairs']} seeds, p = {_p(corrected[control])})."
        for control, tests in found.items()
        if tests["pairs"] > 1
    ]


def _gap(groups: pd.DataFrame, chosen: pd.Series) -> str:
    teachers = groups[groups["stage"] == "teacher"]
    if len(teachers) != 1 or teachers.iloc[0]["test_accuracy"] <= chosen["accuracy_alone"]:
        return ""
    share = chosen["gain"] / (teachers.iloc[0]["test_accuracy"] - chosen["accuracy_alone"])
    return f"; it closes {share:.0%} of the gap to the teacher"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _advice(usable: pd.DataFrame, name: str) -> str:
    """The commands that make what is missing, from the one that made the group."""
    run = usable[usable["group"] == name].iloc[0]
    if not run["command"]:  # a stage that was called from Python
        return "Train the same student alone, and the distilled one, with more seeds to find out."
    given = [
        word
        for word in shlex.split(run["command"])[1:]
        if not word.startswith(("seed=", "stage=", "sweep=", "resume="))
    ]
    own = [word for word in given if word.startswith(("temperature=", "alpha=", "objective", "distill.", "teacher."))]
    common = [word for word in given if word not in own]
    seeds: Sequence[str] = ["seed=0,1,2,3,4"]
    if len(run["teacher"]) == 1:
        seeds = [*seeds, f"teacher.run={run['teacher'][0]}"]
    values = [f"temperature={run['temperature']:g}", f"alpha={run['alpha']:g}"]
    alone = shlex.join(["kdrun", "-m", "stage=student", *common, seeds[0]])
    rest = [word for word in own if not word.startswith(("temperature=", "alpha=", "teacher.run="))]
    distilled = shlex.join(["kdrun", "-m", "stage=distill", *common, *rest, *values, *seeds])
    return f"run {alone} and {distilled} to find out."
