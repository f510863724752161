"""Distilling the teacher into the student."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from kdrun.config.schema import for_role
from kdrun.data import datasets, preparation, transfer
from kdrun.objectives import selection
from kdrun.registry import register
from kdrun.runs import identity
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.teachers import initial, overlap, sources


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where the student cannot be trained, or its teachers do not fit."""
    dataset = checks.training(config, ("distill", "student"))
    selection.check(config["objective"], dataset.num_classes)
    teachers = sources.resolve(config, overrides) if sources.are_needed(config) else []
    checks.teachers(for_role(config, "student"), dataset, teachers)
    checks.cache_folder(config)


def of(config: Mapping) -> dict:
    """The identity of the configured run. Raises InputError where there is no teacher."""
    teachers = sources.resolve(config) if sources.are_needed(config) else []
    weights = [sources.weights_of(each) for each in teachers]
    of_dataset, of_transfer = transfer.fingerprints(config["data"])
    return identity.of_distilled(config, of_dataset, weights, of_transfer)


@register(
    "stage",
    "distill",
    check=check,
    identity=of,
    role="student",
    trains="distill",
    leaves_network=True,
    takes_teachers=True,
    arm_of="pipeline",
)
def distill(config: Mapping, run_dir: Path) -> dict:
    """Train the student on the labels and on what the teacher says, or on the labels under other objectives."""
    from kdrun.models import surgery
    from kdrun.runtime import precision
    from kdrun.stages import job
    from kdrun.teachers import checkpoint, supervisors
    from kdrun.training.job import InitialWeights, SupervisionSpec

    found = sources.resolve(config) if sources.are_needed(config) else []
    labelled, unlabelled = datasets.load(config["data"], config["seed"]), transfer.load(config["data"])
    teachers = [sources.described(config, each) for each in found]
    begins = initial.facts(config, "student")
    facts = {"seed": config["seed"], "dataset_sha256": labelled.sha256, "teachers": teachers, **begins}
    facts |= overlap.found(config, "the teacher" if teachers else "what it begins as", [*teachers, *begins.values()])
    weights, dataset = [sources.weights_of(each) for each in found], labelled
    depends = identity.of_distilled(config, labelled.sha256, weights, unlabelled and unlabelled.sha256)
    if unlabelled:
        facts["transfer"] = {"images": len(unlabelled.images), "sha256": unlabelled.sha256}
        if found or config["distill"]["peers"]:  # who learns without a teacher has nothing to learn from them
            dataset = transfer.added(labelled, unlabelled)
    with recording(run_dir, config, depends, **facts) as record:
        precision.prepare_machine()
        model, initial_weights = config["student"]["model"], initial.of_role(config, "student")
        if config["student"]["classifier"] == "teacher":
            classifier = surgery.classifier(checkpoint.load(found[0], "float32")).get_weights()
            model = {**model, "projection_units": len(classifier[0])}
            initial_weights = InitialWeights(
                {"classifier": weights}, lambda made: made.get_layer("classifier").set_weights(classifier)
            )
        asked = (config, found, dataset, model, weights)
        spec = SupervisionSpec(
            compile_key=supervisors.compile_key(config, found, dataset, depends),
            build=partial(supervisors.supervision, *asked),
            again=partial(supervisors.again, *asked),
        )
        shown = preparation.of_data(config["data"], labelled)
        own = {**job.distillation_settings(config), "images_per_epoch": transfer.images_per_epoch(labelled, unlabelled)}
        settings = job.settings_of(config, config["distill"], config["seed"], shown, **own)
        made = job.training_job(config, dataset, model, settings, spec, initial_weights)
        return job.train(made, config, run_dir, record)
