"""Choice of the distilled setting that is spoken of, and of the students alone: both by validation."""

from collections.abc import Collection, Mapping, Set
from typing import NamedTuple

import pandas as pd

LEAST = 2  # seeds in common with students alone, without which a setting is no candidate beside others that have them


class Choice(NamedTuple):
    """The chosen setting and its baseline; the seeds that chose; among which settings, and students alone; and which
    settings had too few seeds."""

    chosen: str
    baseline: str
    seeds: Set[int]
    candidates: list[str]
    baselines: list[str]
    left_out: list[str]
    by_own_seeds: bool = False  # there were too few that all of them have


def choose(candidates: list[str], alone: list[str], seeds: Mapping[str, Set[int]], runs: pd.DataFrame) -> Choice | None:
    """The candidate and the student alone that are best on validation, over the seeds that all of them have.

    None where no candidate has a seed in common with a student alone.
    """
    overlap = {one: {other: len(seeds[one] & seeds[other]) for other in alone} for one in candidates}
    most = max((count for counts in overlap.values() for count in counts.values()), default=0)
    if not most:
        return None
    least = min(most, LEAST)
    ours = [one for one in candidates if max(overlap[one].values()) >= least]
    theirs = [other for other in alone if any(overlap[one][other] >= least for one in ours)]
    left_out = [one for one in candidates if one not in ours]
    shared = set.intersection(*(set(seeds[name]) for name in (*ours, *theirs)))
    if len(shared) >= least:
        chosen, baseline = (best_on_validation(names, shared, runs) for names in (ours, theirs))
        return Choice(chosen, baseline, shared, ours, theirs, left_out)
    chosen = best_on_validation(ours, None, runs)
    theirs = [other for other in theirs if overlap[chosen][other] >= least]
    used: set[int] = set().union(*(seeds[name] for name in (*ours, *theirs)))
    return Choice(
        chosen, best_on_validation(theirs, seeds[chosen], runs), used, ours, theirs, left_out, by_own_seeds=True
    )


def best_on_validation(names: list[str], seeds: Collection[int] | None, runs: pd.DataFrame) -> str:
    """The setting with the highest mean validation accuracy over seeds, None for all its own; the lower cross-entropy
    decides between equals."""
    some = runs[runs["group"].isin(names)]
    if seeds is not None:
        some = some[some["seed"].isin(seeds)]
    measured = ["validation_accuracy", "validation_cross_entropy"]
    means = some.groupby(["group", "seed"])[measured].mean().groupby("group").mean()
    # and its name between these: it only has to be the same one every time
    order = means.assign(name=means.index).sort_values([*measured, "name"], ascending=[False, True, True])
    return str(order.index[0])
