"""Rows as comparison.gathering makes them of runs, without the runs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdrun.comparison import settings


def run(kind: str, group: str, seed: int, right: Sequence[bool], **more) -> dict:
    """A completed run whose network gets the images right where `right` is true; `more` are other columns."""
    right, distilled = np.asarray(right, bool), kind in ("distill", "control")
    stage = "distill" if distilled else kind
    taught_by = more.pop("taught_by", ("t",)) if distilled else ()
    row = {
        **dict.fromkeys(settings.MEASURED, 1.0),
        **{"run": f"{group}/{seed}/{'+'.join(taught_by)}", "problem": "", "status": "completed", "stage": stage},
        **{"kind": kind, "group": group, "seed": seed, "student": "" if kind == "teacher" else "s"},
        **{"study": "" if kind == "teacher" else "study", "weights": f"{group}{seed}", "taught_by": taught_by},
        **{
            "command": f"kdrun stage={stage} experiment=quick seed={seed}",
            "teacher": ["outputs/teacher/t"][:distilled],
        },
        **{
            "identity": {"data": {"name": "mnist"}, "model": {"name": "mlp"}},
            "control": "shuffled teacher" if kind == "control" else "",
        },
        **{"objective": "kd" if distilled else "", "model": "mlp", "epochs": 3, "held_out": True},
        **{"steps": 60, "planned_steps": 60, "overlap": 0, "made_by": "kdrun 1", "parameters": 1000},
        **{"temperature": 4.0 if distilled else None, "alpha": 0.9 if distilled else None, "quantize": ""},
        **{"right": right, "test_accuracy": right.mean(), "errors": int((~right).sum()), "count": len(right)},
        **{"errors_last": int((~right).sum()), "validation_accuracy": right.mean(), "validation_cross_entropy": 0.5},
    }
    return row | more


def frame(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(rows)


def counts(n: int, right: int, order: int = 0) -> np.ndarray:
    """As many of n images right, spread in an order of its own."""
    found = np.zeros(n, bool)
    found[np.random.default_rng(order).permutation(n)[:right]] = True
    return found
