"""Composed configs as runs have them, and the identities of every stage's run by its name."""

from collections.abc import Mapping, Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra

from kdrun.cli.compose import config_dir, plain
from kdrun.config.schema import with_optimizers
from kdrun.runs import identity

TRAINING = ("teacher", "student", "distill")  # stages that train one network
CHAINS = ("pipeline", "generations", "specialists")  # stages that consist of such


def composed(*overrides: str) -> dict:
    """The config of some overrides, as plain values, each role with its optimizer."""
    was_there = GlobalHydra.instance().is_initialized()
    if was_there:
        return with_optimizers(plain(hydra.compose("config", list(overrides))))
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return with_optimizers(plain(hydra.compose("config", list(overrides))))


def of(config: Mapping, stage: str, dataset_sha256: str, weights: Sequence[str] = ()) -> dict:
    """The identity of a stage's run."""
    if stage in CHAINS:
        return identity.of_chain(config, dataset_sha256)
    if stage in ("distill", "specialist"):
        function = {"distill": identity.of_distilled, "specialist": identity.of_specialist}[stage]
        return function(config, dataset_sha256, weights)
    return {"teacher": identity.of_teacher, "student": identity.of_student}[stage](config, dataset_sha256)
