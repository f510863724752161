"""Runs that differ in their seed, or their teacher's, alone are a setting: a row with means over seeds."""

import numpy as np
import pandas as pd

from kdrun.comparison import intervals
from kdrun.comparison.kinds import ALONE, DISTILLED, TEACHER

MEASURED = (
    *("parameters", "multiply_adds", "weights_bytes", "training_seconds", "validation_accuracy"),
    *("validation_cross_entropy", "test_accuracy", "errors", "count", "cross_entropy", "brier", "calibration_error"),
    *("balanced_accuracy", "teacher_agreement", "teacher_kl"),
)
_ALIKE = (
    *("stage", "kind", "model", "study", "student", "epochs", "held_out", "steps", "objective", "control"),
    *("temperature", "alpha", "quantize"),
)
# what runs are, so that nothing depends on where they lie or in which order they were found
_ORDER = ["study", "kind", "objective", "temperature", "alpha", "group", "seed", "taught_by", "weights"]


def once(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs that can be compared, in an order of their own, each seed of a setting once for every teacher; and which
    runs are not counted."""
    usable = runs[runs["problem"] == ""]
    usable = usable[usable["stage"].isin([TEACHER, ALONE, DISTILLED])] if len(usable) else usable
    if usable.empty:
        return usable, []
    usable = usable.sort_values([*_ORDER, "run"], kind="stable", na_position="first")
    again = usable.duplicated(["group", "seed", "taught_by"])
    said = [
        f"{run} is not counted: it has the seed, and the teacher, of another run of its group"
        for run in usable[again]["run"]
    ]
    return usable[~again], said


def grouped(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting: how many runs (n), seeds and teachers, and means over seeds; of test accuracy also the
    standard deviation over seeds and Student's 95 % interval of the mean, of calibration error the deviation.

    Several teachers of a seed are averaged first.
    """
    if runs.empty:
        return pd.DataFrame()
    keys = [*MEASURED, *(key for key in runs.columns if key.startswith("latency_"))]
    numbers = runs[keys].apply(pd.to_numeric, errors="coerce")
    means = numbers.groupby([runs["group"], runs["seed"]]).mean()
    rows = {}
    for name, group in runs.groupby("group", sort=False):
        first, by_seed = group.iloc[0], means.loc[name]
        low, high = intervals.mean(by_seed["test_accuracy"])
        rows[name] = {
            **{key: first[key] for key in _ALIKE},
            "overlap": int(group["overlap"].max()),
            "made_by": ", ".join(sorted(set(group["made_by"]))),
            "n": len(group),
            "seeds": len(by_seed),
            "teachers": len(set(group["taught_by"]) - {()}),
            **by_seed.mean().to_dict(),
            "test_accuracy_std": by_seed["test_accuracy"].std(ddof=1),
            "test_accuracy_low": float(np.clip(low, 0.0, 1.0)),  # NaN stays
            "test_accuracy_high": float(np.clip(high, 0.0, 1.0)),
            "calibration_error_std": by_seed["calibration_error"].std(ddof=1),
            "runs": list(group["run"]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
