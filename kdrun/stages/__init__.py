"""The verbs: each stage's file brings its check and its run, and says what it is; see registry.Stage.

Importable without TensorFlow, which a stage's run imports.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun import registry
from kdrun.config.schema import for_role, own
from kdrun.errors import InputError
from kdrun.runs import directory
from kdrun.runtime import cluster, signals

ENTRIES = {  # name -> the module that registers it
    "pipeline": ".pipeline",
    "teacher": ".train",
    "student": ".train",
    "distill": ".distill",
    "generations": ".generations",
    "cache": ".cache",
    "compare": ".compare",
    "data": ".data",
    "adjust_bias": ".adjust_bias",
    "specialists": ".specialists",
    "specialist": ".specialists",
    "evaluate": ".evaluate",
    "export": ".export",
    "predict": ".predict",
}


def check(config: Mapping, overrides: Sequence[str] = ()) -> None:
    """Raises InputError for what of a config does not fit together, or not with the files that it names.

    `overrides` are the command line's, for the command that an error recommends.
    """
    entry = registry.get("stage", config["stage"])
    if not entry.takes_seeds:
        for key in ("seeds", "teachers", "controls"):
            if config[key]:
                taking = [name for name in registry.names("stage") if takes_seeds(registry.get("stage", name))]
                raise InputError(
                    f"{key} is not for stage={entry.name}. Leave it out, or give one of stage {', '.join(taking)}."
                )
    if config["export"]["format"] and not (entry.exports or entry.arm_of):
        exporting = [name for name in registry.names("stage") if registry.get("stage", name).exports]
        raise InputError(
            f"export.format={config['export']['format']} is for stage {', '.join(exporting)}. Leave it out, and export "
            "the run afterwards: kdrun stage=export run=RUN_DIRECTORY."
        )
    if cluster.of(config) and not entry.trains:
        training = [name for name in registry.names("stage") if registry.get("stage", name).trains]
        raise InputError(
            f"cluster={config['cluster']} is for one job. Leave it out, or give one of stage {', '.join(training)}."
        )
    for name, keys in config["tracker"].items():
        tracker = registry.get("tracker", name)
        with tracker.explained():
            tracker.check(keys)
    with entry.explained():
        entry.check(config, overrides)
    directory.check_writable("outputs", Path(config["outputs"]) / config["stage"])


def takes_seeds(entry: registry.Stage) -> bool:
    """Whether a stage, or the one that it is an arm of, trains over several seeds."""
    return entry.takes_seeds or entry.arm_of is not None


def identity(config: Mapping) -> dict | None:
    """Everything that the configured stage's result depends on; None for a stage that is done in no time.

    Raises InputError where what it depends on cannot be found.
    """
    entry = registry.get("stage", config["stage"])
    return entry.identity(config) if entry.identity else None


def needs_tensorflow(config: Mapping) -> bool:
    """Whether the configured stage does."""
    needs = registry.get("stage", config["stage"]).needs_tensorflow
    return needs(config) if callable(needs) else needs


def run(config: Mapping, run_dir: Path) -> dict:
    """Run the configured stage in its run directory. SIGINT and SIGTERM end it between two steps."""
    entry = registry.get("stage", config["stage"])
    with signals.on_signals():
        return entry.call(for_role(config, entry.role), run_dir, **own(config, entry))
