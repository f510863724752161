"""The teachers' logits on disk: kept ahead of time, or cleared."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from kdrun.data import datasets
from kdrun.registry import register
from kdrun.runs.recording import recording
from kdrun.runtime import precision
from kdrun.storage import files
from kdrun.teachers import cache, checkpoint
from kdrun.teachers import outputs as answers

log = logging.getLogger(__name__)


@register("stage", "cache")
def fill_or_clear(config: Mapping, run_dir: Path) -> dict:
    """Keep the configured teacher's logits in `cache_dir`; with cache.clear, list or delete what is in there."""
    with recording(run_dir, config) as record:
        record["results"] = _clear(config) if config["cache"]["clear"] else _fill(config)
        return record["results"]


def _fill(config: Mapping) -> dict:
    precision.prepare_machine()
    sources = checkpoint.sources(config)
    config = {**config, "teacher": {**config["teacher"], "cache": "on"}}  # this stage has nothing else to go on with
    dataset, shapes = datasets.load(config["data"], config["seed"]), {}
    for source in sources:
        shapes = {split: list(array.shape) for split, array in answers.kept(config, source, dataset).items()}
    return {"teachers": [str(source) for source in sources], "shapes": shapes}


def _clear(config: Mapping) -> dict:
    folder, deletes = Path(config["cache_dir"]), config["cache"]["yes"]
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
