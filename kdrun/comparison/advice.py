"""The commands that would tell more: made from those that made a study's runs, ready to be pasted."""

import itertools
import shlex
from collections.abc import Sequence

import pandas as pd

from kdrun.commands import value
from kdrun.comparison.kinds import DISTILLED
from kdrun.comparison.studies import Study

_NEW_SEEDS = 5  # that are asked for where nothing says how many
_MANY_SEEDS = 50  # more are not asked for
# words of a run's command that another one has in its own way
_OWN = (
    *("seed=", "seeds=", "stage=", "sweep=", "resume=", "hydra.", "teacher.run=", "export."),
    *("generations=", "clusters=", "specialist."),
)
_OF_DISTILLING = ("objective", "control=", "temperature", "alpha", "annealing", "distill.", "student.classifier=")
_AS_LONG = {f"distill.{key}=": f"student.{key}=" for key in ("epochs", "batch_size", "patience")}


def commands(study: Study, runs: pd.DataFrame) -> list[str]:
    """Of the same student alone, where it is missing; of fresh seeds, where they are too few or chose."""
    if study.chosen is None:
        return []
    of_chosen = runs[runs["group"] == study.chosen]
    ours, seeds = of_chosen.iloc[0], sorted(int(seed) for seed in of_chosen["seed"].unique())
    alone = runs[runs["group"] == study.baseline].iloc[0] if study.baseline else ours
    if not (_is_usable(ours) and _is_usable(alone)):
        return []
    if not study.baseline:
        return [_alone(ours, seeds)]
    needed = _needed(study)
    if not needed:
        return []
    if study.missing:
        return [_alone(alone, study.missing)]
    taken = {int(seed) for seed in runs["seed"]}
    new = list(itertools.islice((seed for seed in itertools.count() if seed not in taken), needed))
    distilled = _distilled(study, of_chosen, new)
    return [_alone(alone, new), *distilled] if distilled else []


def _needed(study: Study) -> int:
    """How many seeds, none where they would not help or would be too many."""
    if study.adjusted_for > 1 or study.verdict == "too few seeds":
        return _NEW_SEEDS
    if study.verdict != "not decided" or study.seeds_to_tell is None:
        return 0
    needed = study.seeds_to_tell - len(study.seeds)
    return needed if 0 < needed <= _MANY_SEEDS else 0


def _is_usable(run: pd.Series) -> bool:
    """Whether a run's command says what it was: not that of a stage called from Python, nor of a run that went on."""
    return bool(run["command"]) and not any(_key(word).startswith("resume=") for word in shlex.split(run["command"]))


def _key(word: str) -> str:
    return word.lstrip("+~")


def _given(run: pd.Series) -> list[str]:
    words = shlex.split(run["command"])[1:]
    return [word for word in words if not _key(word).startswith(_OWN)]


def _alone(run: pd.Series, seeds: Sequence[int]) -> str:
    words = [_as_long(word) if run["stage"] == DISTILLED else word for word in _given(run)]
    words = [word for word in words if not _key(word).startswith(_OF_DISTILLING)]
    return shlex.join(["kdrun", "-m", "stage=student", *words, _swept(seeds)])


def _as_long(word: str) -> str:
    """A distilled student's own length, as the one alone is to have it."""
    return next((to + word.removeprefix(key) for key, to in _AS_LONG.items() if word.startswith(key)), word)


def _distilled(study: Study, runs: pd.DataFrame, seeds: Sequence[int]) -> list[str]:
    run = runs.iloc[0]
    words = [word for word in _given(run) if not _key(word).startswith(("temperature=", "alpha="))]
    words += [f"temperature={_exact(run['temperature'])}", f"alpha={_exact(run['alpha'])}"]
    had_a_teacher = any(_key(word).startswith("teacher.run=") for word in shlex.split(run["command"]))
    stage = "distill"
    if peers := run["identity"].get("peers"):
        words.append(f"distill.peers={peers}")
    elif any(_key(word).startswith(("teacher.logits=", "teacher.file=")) for word in words):
        pass
    elif study.own_teachers:
        if had_a_teacher:  # trained apart, by what command is not known here
            return []
        stage = "pipeline"  # which trains each seed's teacher, too
    else:
        teachers = list(dict.fromkeys(tuple(each) for each in runs["teacher"]))
        if not all(path.isprintable() for each in teachers for path in each):
            return []
        words.append(f"teacher.run={','.join(_list(each) for each in teachers)}")
    return [shlex.join(["kdrun", "-m", f"stage={stage}", *words, _swept(seeds)])]


def _list(paths: Sequence[str]) -> str:
    """Run directories as Hydra reads them: one, or an ensemble's."""
    written = [value(path) for path in paths]
    return written[0] if len(written) == 1 else f"[{','.join(written)}]"


def _exact(number: float) -> str:
    """All its digits: a search's temperatures have many."""
    return repr(float(number)).removesuffix(".0")


def _swept(seeds: Sequence[int]) -> str:
    return f"seed={','.join(map(str, seeds))}"
