"""A stage's training job, made from its config, done, and recorded. Loads TensorFlow: for a stage's run to import."""

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import rich.progress  # noqa: F401 - now, as the next one, and not while a run's first step is waited for

import kdrun.tracking.summaries  # noqa: F401
from kdrun import registry
from kdrun.config.keys import Mixing
from kdrun.data import augmentation, datasets, report
from kdrun.data.preparation import Preparation, recorded
from kdrun.errors import InputError
from kdrun.objectives import selection
from kdrun.reports import classes, figures
from kdrun.runs.recording import update
from kdrun.runtime import devices, precision, rendezvous
from kdrun.storage import files
from kdrun.tracking import tracker as tracking
from kdrun.training import job as jobs
from kdrun.training.job import AS_DRAWN, ON_LABELS, InitialWeights, SupervisionSpec, TrainingJob
from kdrun.training.settings import Annealed, Settings

log = logging.getLogger(__name__)

FILES = ("checkpoints/best.weights.h5", "checkpoints/last.weights.h5", "predictions/test.npz")


def settings_of(
    config: Mapping, training: Mapping, seed: int, preparation: Preparation, **distillation: Any
) -> Settings:
    """How the configured stage trains its network, which is shown images as `preparation` says. `training` has its
    epochs, patience and batch size, and `distillation` are the settings that it has beside these."""
    data, role = config["data"], registry.get("stage", config["stage"]).role
    return Settings(
        seed=seed,
        epochs=training["epochs"],
        patience=training["patience"],
        held_out=not data["train_on_validation"],
        batch_size=training["batch_size"],
        preparation=preparation,
        augmentation=augmentation.of(data),
        optimizer=config[role]["optimizer"],
        temperature=Annealed(config["temperature"], config["temperature_end"]),
        alpha=Annealed(config["alpha"], config["alpha_end"], config["alpha_warmup_epochs"]),
        annealing=config["annealing"],
        quantize=config[role].get("quantize"),
        **{key: training.get(key, 0.0) for key in Mixing.__annotations__},
        **distillation,
    )


def distillation_settings(config: Mapping) -> dict[str, Any]:
    """The settings of a training job that only distilling has."""
    return {
        "weights": [Annealed(*each) for each in selection.weights(config["objective"])],
        "shuffle": config["teacher"]["shuffle"],
    }


def training_job(
    config: Mapping,
    dataset: datasets.Dataset,
    model: Mapping,
    settings: Settings,
    supervision: SupervisionSpec = ON_LABELS,
    initial_weights: InitialWeights = AS_DRAWN,
) -> TrainingJob:
    """The training job of the configured stage."""
    precision.prepare_machine()
    data = config["data"]
    return TrainingJob(
        name=config["stage"],
        dataset=dataset,
        data_key={**data, "subset_seed": settings.seed if data["train_fraction"] < 1 else None},
        model=model,
        policy="float32" if settings.quantize else precision.policy(config["precision"]),
        settings=settings,
        evaluation_batch_size=config["evaluation_batch_size"],
        save_every=60 * config["checkpoint"]["every_minutes"],
        measure_latency=config["measure_latency"],
        on_device=data["on_device"],
        devices=devices.count(config["devices"]),
        sync_batch_norm=config["sync_batch_norm"],
        member=rendezvous.current(),
        supervision=supervision,
        initial_weights=initial_weights,
    )


def train(job: TrainingJob, config: Mapping, run_dir: Path, record: dict) -> dict:
    """Do a job of the configured stage; fills in `record` and returns its results.

    Raises what training.job.run does, and InputError where a run that goes on began in another precision.
    """
    settings = job.settings
    record["validation_images"] = datasets.validation_count(config["data"])
    if found := report.findings(config["data"]):
        record["findings"] = found
    if record.get("precision", job.policy) != job.policy:
        raise InputError(
            f"{run_dir} began in {record['precision']}, and precision={config['precision']} is {job.policy} here. "
            "Go on where it began."
        )
    program = jobs.prepare(job)
    if follower := rendezvous.follower():
        jobs.follow(job, program, follower)
        return {}
    run = tracking.Run(
        run_dir,
        title=job.name,
        started=datetime.fromisoformat(record["started"]),
        epochs=settings.epochs,
        steps_per_epoch=job.steps_per_epoch,
        batch_size=settings.batch_size,
        config=config,
        hyperparameters=_hyperparameters(job, config),
        devices=program.replicas.count,
    )
    for folder in ("checkpoints", "predictions"):
        (run_dir / folder).mkdir(exist_ok=True)
    with tracking.Trackers(run, tracking.chosen(config["tracker"])) as trackers:
        names = [str(name) for name in job.dataset.class_names]
        record |= {"model": job.model, "image_shape": job.image_shape, "precision": job.policy, "class_names": names}
        record["raw_shape"] = list(job.dataset.train.images.shape[1:])  # of images before they are resized
        record |= recorded(settings.preparation)
        record |= jobs.describe(program)
        update(run_dir, record)
        results = jobs.run(job, program, run_dir, trackers)
        trackers.end(_numbers(results["test"]), figures.of_predictions(job.dataset.test, run_dir, names))
        record["results"] = results
        record["files"] = {name: files.sha256(run_dir / name) for name in (*FILES, *trackers.files)}
    log.info(
        "%s: first step after %.1f s, then %s; test accuracy %.4f (%s), %.4f (last)",
        job.name,
        results["seconds_to_first_step"],
        run.speed(results["images_per_second"]),
        results["test"]["best"]["accuracy"],
        "best by validation" if settings.held_out else "validation was trained on",
        results["test"]["last"]["accuracy"],
    )
    log.info("%s: %s", job.name, classes.lowest(names, results["test"]["best"]))
    return results


def _numbers(test: Mapping) -> dict[str, dict[str, float]]:
    """The best and the last weights' test metrics as trackers take them: a number each, without those by class."""
    return {
        which: {name: value for name, value in test[which].items() if not isinstance(value, list)}
        for which in ("best", "last")
    }


def _hyperparameters(job: TrainingJob, config: Mapping) -> dict:
    """The few values that tell runs apart."""
    settings, optimizer = job.settings, job.settings.optimizer
    shown = {"stage": job.name, "seed": settings.seed, "epochs": settings.epochs, "batch_size": settings.batch_size}
    shown |= {"model": job.model["name"], "optimizer": optimizer["name"], "learning_rate": optimizer["learning_rate"]}
    if job.devices > 1 or job.cluster:
        shown |= {"devices": job.devices, "machines": job.cluster.size if job.cluster else 1}
    if settings.weights:
        objective = "+".join(selection.chosen(config["objective"]))
        shown |= {"temperature": config["temperature"], "alpha": config["alpha"], "objective": objective}
    return shown
