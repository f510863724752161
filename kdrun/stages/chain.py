"""Stages run one after the other as parts of a run: each begun, gone on with, or reused."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun import stages
from kdrun.config.schema import shared
from kdrun.errors import InputError
from kdrun.runs import directory
from kdrun.runs import record as runs
from kdrun.runs.identity import fingerprint
from kdrun.runs.recording import update

log = logging.getLogger(__name__)


def run_or_reuse(config: Mapping, run_dir: Path, record: dict, name: str, identity: Mapping, **own: Any) -> Path:
    """The run directory of a completed training stage with this identity, run now if need be.

    `config` is that of the chain, and `own` the stage's own keys.

    `record` is of the run that it is a part of, in `run_dir`; under `name` it remembers the part's directory, so that
    it goes on where it was. With `reuse` in the config, a completed run from elsewhere is taken.
    """
    config = {**shared(config), **own, "stage": identity["stage"]}
    begun = record.setdefault("stages", {})
    found = _good(begun.get(name), identity) or reusable(config, identity)
    if found and (reused := runs.read(found))["status"] == "completed":
        log.info("%s: reusing the completed run %s%s", name, found, runs.other_code(reused))
        return found
    begun[name] = str(found or directory.create(config["outputs"], config["stage"]))
    update(run_dir, record)
    stages.run(config, Path(begun[name]))
    return Path(begun[name])


def reusable(config: Mapping, identity: Mapping) -> Path | None:
    """A completed run with this identity, if such may be taken."""
    return runs.find(config["outputs"], identity) if config["reuse"] else None


def _good(begun: str | None, identity: Mapping) -> Path | None:
    """The run directory in which a pipeline that goes on has begun a stage, if it can be used."""
    if begun is None:
        return None
    try:
        record = runs.read(begun)
    except InputError as error:
        log.warning("%s Beginning that stage anew", error)
        return None
    if record.get("fingerprint") != fingerprint(identity):
        log.warning("%s depends on something else than it did. Beginning that stage anew", begun)
        return None
    if record["status"] == "completed" and (changed := runs.damaged(Path(begun), record)):
        log.warning("%s: %s is not what run.json says. Beginning that stage anew", begun, ", ".join(changed))
        return None
    return Path(begun)
