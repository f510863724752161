"""The teachers' logits on disk: cached ahead of time, or cleared."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypedDict

from kdrun.config import rules
from kdrun.config.schema import for_role
from kdrun.data import datasets, transfer
from kdrun.registry import register
from kdrun.runs import directory
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.storage import files
from kdrun.teachers import cache, foreign, kinds, sources

log = logging.getLogger(__name__)


class Keys(TypedDict):
    """What is done with the cache."""

    clear: Annotated[bool, rules.boolean]
    yes: Annotated[bool, rules.boolean]


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where there is no teacher, or no place for its logits."""
    if not config["cache"]["clear"]:  # else it is about what is there, whatever it was made from
        dataset = checks.students_data(config)
        student = for_role({**config, "teacher": {**config["teacher"], "cache": "on"}}, "student")
        checks.augmented(student["data"])
        found = sources.resolve(config, overrides)
        checks.kept_views(student, found)
        for source in filter(kinds.is_foreign, found):
            foreign.check(student, source, dataset)
        directory.check_writable("cache_dir", Path(config["cache_dir"]))


@register(
    "stage",
    "cache",
    check=check,
    role="student",
    needs_tensorflow=lambda config: not config["cache"]["clear"],
    takes_teachers=True,
)
def fill_or_clear(config: Mapping, run_dir: Path, *, cache: Keys) -> dict:
    """Keep the configured teacher's logits in `cache_dir`; with cache.clear, list or delete what is in there."""
    with recording(run_dir, config) as record:
        record["results"] = _clear(config, cache["yes"]) if cache["clear"] else _fill(config)
        return record["results"]


def _fill(config: Mapping) -> dict:
    found, shapes = sources.resolve(config), {}
    config = {**config, "teacher": {**config["teacher"], "cache": "on"}}  # this stage has nothing else to go on with
    for source in found:
        logits = ask(config, source)
        assert logits is not None  # with teacher.cache=on it raises instead
        shapes = {split: list(array.shape) for split, array in logits.items()}
    return {"teachers": [str(source) for source in found], "shapes": shapes}


def ask(config: Mapping, source: Path) -> Mapping | None:
    """A teacher's cached logits by split, asked for now where they are not there; None where they are not to be
    cached. `config` is as the student sees the data."""
    from kdrun.runtime import precision
    from kdrun.teachers import outputs

    precision.prepare_machine()
    dataset, unlabelled = datasets.load(config["data"], config["seed"]), transfer.load(config["data"])
    return outputs.cached(config, source, transfer.added(dataset, unlabelled) if unlabelled else dataset)


def _clear(config: Mapping, deletes: bool) -> dict:
    folder = Path(config["cache_dir"])
    found = cache.entries(folder)
    for entry, size in found:
        if why := cache.remove(entry) if deletes else cache.foreign(entry):
            log.warning("cache: %s stays: %s", entry, why)
        else:
            log.info("cache: %s %s (%s)", "deleted" if deletes else "would delete", entry, files.readable(size))
    if not found:
        log.info("cache: nothing of kdrun's is in %s", folder)
    elif not deletes:
        log.info("cache: nothing was deleted. To delete these %d, add cache.yes=true", len(found))
    left = [str(entry) for entry, _ in found if os.path.lexists(entry)]
    return {"found": [str(entry) for entry, _ in found], "left": left}
