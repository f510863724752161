"""Training on labels: the teacher, and the student alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun.data import datasets, preparation, transfer
from kdrun.registry import register
from kdrun.runs import identity
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.teachers import initial, overlap


def check_teacher(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where the teacher cannot be trained."""
    checks.training(config, ("teacher", "teacher"))
    checks.cache_folder(config)


def check_student(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where the student cannot be trained."""
    checks.training(config, ("student", "student"))
    checks.cache_folder(config)


def of_teacher(config: Mapping) -> dict:
    """The identity of the configured teacher."""
    return identity.of_teacher(config, datasets.fingerprint(config["data"]))


def of_student(config: Mapping) -> dict:
    """The identity of the configured student alone."""
    return identity.of_student(config, *transfer.fingerprints(config["data"]))


@register(
    "stage",
    "teacher",
    check=check_teacher,
    identity=of_teacher,
    role="teacher",
    trains="teacher",
    leaves_network=True,
)
def teacher(config: Mapping, run_dir: Path) -> dict:
    """Train the teacher on labels."""
    return _on_labels(config, run_dir, "teacher", config["teacher"]["seed"], of_teacher(config))


@register(
    "stage",
    "student",
    check=check_student,
    identity=of_student,
    role="student",
    trains="student",
    leaves_network=True,
    arm_of="pipeline",
)
def student(config: Mapping, run_dir: Path) -> dict:
    """Train the student on labels alone: the baseline of distilling."""
    return _on_labels(config, run_dir, "student", config["seed"], of_student(config))


def _on_labels(config: Mapping, run_dir: Path, role: str, seed: int, depends: Mapping) -> dict:
    from kdrun.stages import job

    dataset, others, own = datasets.load(config["data"], seed), transfer.load(config["data"]), config[role]
    begins = initial.facts(config, role)
    facts = {
        "seed": seed,
        "dataset_sha256": dataset.sha256,
        **begins,
        **overlap.found(config, "what it begins as", begins.values()),
    }
    with recording(run_dir, config, depends, **facts) as record:
        length = transfer.images_per_epoch(dataset, others)
        shown = preparation.of_data(config["data"], dataset)
        settings = job.settings_of(config, own, seed, shown, images_per_epoch=length)
        initial_weights = initial.of_role(config, role)
        made = job.training_job(config, dataset, own["model"], settings, initial_weights=initial_weights)
        return job.train(made, config, run_dir, record)
