"""Training on labels: the teacher, and the student alone. Distilling trains the same way, with a teacher beside."""

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.objectives import selection as choosing
from kdrun.registry import register
from kdrun.reports import figures
from kdrun.runs import record as runs
from kdrun.runs.recording import recording, update
from kdrun.runtime import precision
from kdrun.storage import files
from kdrun.tracking import tracker as tracking
from kdrun.training import job as jobs
from kdrun.training.job import AS_DRAWN, ON_LABELS, InitialWeights, SupervisionSpec, TrainingJob
from kdrun.training.settings import Annealed, Settings

log = logging.getLogger(__name__)

FILES = ("checkpoints/best.weights.h5", "checkpoints/last.weights.h5", "predictions/test.npz")


@register("stage", "teacher")
def teacher(config: Mapping, run_dir: Path) -> dict:
    """Train the teacher on labels."""
    return _supervised(config, run_dir, config["teacher"]["seed"])


@register("stage", "student")
def student(config: Mapping, run_dir: Path) -> dict:
    """Train the student on labels alone: the baseline of distilling."""
    return _supervised(config, run_dir, config["seed"])


def _supervised(config: Mapping, run_dir: Path, seed: int) -> dict:
    stage = config["stage"]
    dataset = datasets.load(config["data"], seed)
    depends = runs.identity(config, stage, dataset.sha256)
    with recording(run_dir, config, depends, seed=seed, dataset_sha256=dataset.sha256) as record:
        return train_network(config, run_dir, record, dataset, config[stage]["model"], seed)


def train_network(
    config: Mapping,
    run_dir: Path,
    record: dict,
    dataset: datasets.Dataset,
    model_keys: Mapping,
    seed: int,
    supervision: SupervisionSpec = ON_LABELS,
    initial_weights: InitialWeights = AS_DRAWN,
) -> dict:
    """Train the network of a stage; fills in `record` and returns its results."""
    stage = config["stage"]
    precision.prepare_machine()
    job = job_of(config, dataset, model_keys, seed, supervision, initial_weights)
    settings, steps_per_epoch = job.settings, job.steps_per_epoch
    if record.get("precision", job.policy) != job.policy:
        raise InputError(
            f"{run_dir} began in {record['precision']}, and precision={config['precision']} is {job.policy} here. "
            "Go on where it began."
        )
    program = jobs.prepare(job)
    run = tracking.Run(
        run_dir,
        title=stage,
        started=datetime.fromisoformat(record["started"]),
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=settings.batch_size,
        config=config,
        hyperparameters=_hyperparameters(config, seed),
    )
    for folder in ("checkpoints", "predictions"):
        (run_dir / folder).mkdir(exist_ok=True)
    with tracking.Trackers(run, tracking.chosen(config["tracker"])) as monitor:
        record |= {"model": model_keys, "image_shape": job.image_shape, "precision": job.policy}
        record |= jobs.describe(program)
        update(run_dir, record)
        results = jobs.run(job, program, run_dir, monitor)
        pictures = figures.of_predictions(dataset.test, run_dir)
        monitor.end(results["test"], pictures)
        record["results"] = results
        record["files"] = {name: files.sha256(run_dir / name) for name in (*FILES, *monitor.files)}
    log.info(
        "%s: first step after %.1f s, then %s images/s; test accuracy %.4f (%s), %.4f (last)",
        stage,
        results["seconds_to_first_step"],
        f"{results['images_per_second']:,.0f}",
        results["test"]["best"]["accuracy"],
        "best by validation" if settings.held_out else "validation was trained on",
        results["test"]["last"]["accuracy"],
    )
    return results


def job_of(
    config: Mapping,
    dataset: datasets.Dataset,
    model_keys: Mapping,
    seed: int,
    supervision: SupervisionSpec = ON_LABELS,
    initial_weights: InitialWeights = AS_DRAWN,
) -> TrainingJob:
    """The training job of the configured stage."""
    data = config["data"]
    return TrainingJob(
        name=config["stage"],
        dataset=dataset,
        data_key={**data, "subset_seed": seed if data["train_fraction"] < 1 else None},
        model=model_keys,
        policy=precision.policy(config["precision"]),
        settings=settings_of(config, seed),
        evaluation_batch_size=config["evaluation_batch_size"],
        save_every=60 * config["checkpoint"]["every_minutes"],
        measure_latency=config["measure_latency"],
        supervision=supervision,
        initial_weights=initial_weights,
    )


def settings_of(config: Mapping, seed: int) -> Settings:
    """How the configured stage trains its network."""
    data, role = config["data"], config[config["stage"]]
    return Settings(
        seed=seed,
        epochs=role["epochs"],
        patience=role["patience"],
        held_out=not data["train_on_validation"],
        batch_size=role["batch_size"],
        image_size=data["image_size"],
        jitter=data["augment"]["jitter"],
        flip=data["augment"]["flip"],
        optimizer=config["optimizer"],
        temperature=Annealed(config["temperature"], config["temperature_end"]),
        alpha=Annealed(config["alpha"], config["alpha_end"], config["alpha_warmup_epochs"]),
        weights=[Annealed(*each) for each in choosing.weights(config["objective"])]
        if config["stage"] == "distill"
        else (),
        annealing=config["annealing"],
        shuffle=config["teacher"]["shuffle"] if config["stage"] == "distill" else "none",
        mixup=config["distill"]["mixup"] if config["stage"] == "distill" else 0.0,
    )


def _hyperparameters(config: Mapping, seed: int) -> dict:
    stage, optimizer = config["stage"], config["optimizer"]
    model = config["teacher" if stage == "teacher" else "student"]["model"]
    shown = {"stage": stage, "seed": seed, "epochs": config[stage]["epochs"], "batch_size": config[stage]["batch_size"]}
    shown |= {"model": model["name"], "optimizer": optimizer["name"], "learning_rate": optimizer["learning_rate"]}
    if stage == "distill":
        shown |= {
            "temperature": config["temperature"],
            "alpha": config["alpha"],
            "objective": "+".join(choosing.chosen(config["objective"])),
        }
    return shown
