"""Training on labels: the teacher, and the student alone. Distilling trains the same way, with a teacher beside."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from kdrun.data import batches, datasets
from kdrun.errors import InputError
from kdrun.evaluation import metrics
from kdrun.evaluation.inference import compiled_inference, latency, logits
from kdrun.models import build as models
from kdrun.models.weights import save_weights
from kdrun.objectives import selection as choosing
from kdrun.registry import register
from kdrun.reports import figures
from kdrun.runs import record as runs
from kdrun.runs.recording import recording, update
from kdrun.runtime import precision
from kdrun.storage import files
from kdrun.tracking import tracker as tracking
from kdrun.training import loop, schedules, state
from kdrun.training.network import Network, Teaching, kept

log = logging.getLogger(__name__)

_LOGS = 500_000  # bytes of a short run's logs, curves and pictures

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


class Taught(NamedTuple):
    """Teaching to be: what its part in training depends on, as plain values, and how to make it."""

    depends: Mapping
    make: Callable[[], Teaching]


class Start(NamedTuple):
    """Weights that are not the initial ones: what they depend on, as plain values, and how a model gets them."""

    depends: Mapping
    begin: Callable


def train_network(
    config: Mapping,
    run_dir: Path,
    record: dict,
    dataset: datasets.Dataset,
    model_keys: Mapping,
    seed: int,
    taught: Taught | None = None,
    start: Start | None = None,
) -> dict:
    """Train the network of a stage; fills in `record` and returns its results.

    `taught` is for distilling, None for training on labels alone; `start` for a network that takes over weights.
    """
    stage = config["stage"]
    precision.prepare_machine()
    settings = settings_of(config, seed)
    size = settings.image_size
    image_shape = (size, size, dataset.train.images.shape[3])
    steps_per_epoch = batches.steps_per_epoch(len(dataset.train.labels), settings.batch_size)
    policy = precision.policy(config["precision"])
    if record.get("precision", policy) != policy:
        raise InputError(
            f"{run_dir} began in {record['precision']}, and precision={config['precision']} is {policy} here. "
            "Go on where it began."
        )
    network = _network(config, dataset, model_keys, image_shape, settings, policy, taught, start)
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
        record |= {"model": model_keys, "image_shape": image_shape, "precision": policy, **_described(network)}
        log.info(
            "%s: %s, %s parameters, %s, %d epochs of %d steps of %d images -> %s",
            stage,
            model_keys["name"],
            f"{network.model.count_params():,}",
            policy,
            settings.epochs,
            steps_per_epoch,
            settings.batch_size,
            run_dir,
        )
        update(run_dir, record)
        save_every = 60 * config["checkpoint"]["every_minutes"]
        results = loop.train(network, dataset, settings, run_dir, monitor, save_every)
        pictures = figures.of_predictions(dataset.test, run_dir)
        monitor.end(results["test"], pictures)
        if config["measure_latency"]:
            network.latency = network.latency or latency(network.model, dataset.test.images, size)
            results["latency"] = network.latency
        if network.peers:
            results["peers"] = _peers(network, config, dataset, run_dir)
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


def _described(network: Network) -> dict:
    """What a run's record says of its network."""
    return {
        "num_classes": network.model.output.shape[-1],
        "multiply_adds": models.multiply_adds(network.model),
        "parameters": {
            "total": network.model.count_params(),
            "trainable": sum(v.shape.num_elements() for v in network.model.trainable_variables),
            # trained beside the network, and no part of it
            "objectives": sum(v.shape.num_elements() for v in network.learned.trainable_variables),
        },
        # the last two training states and the next one beside them; best and last weights likewise; logs and curves
        "room_needed": 3 * state.size(network) + 3 * state.size_of(network.model.variables) + _LOGS,
    }


def _peers(network: Network, config: Mapping, dataset: datasets.Dataset, run_dir: Path) -> list[dict]:
    """Save the peers' last weights, and measure them on the test set."""
    found = []
    for number, peer in enumerate(network.peers, start=1):
        infer = compiled_inference(
            peer, dataset.test.images.shape[1:], config["evaluation_batch_size"], config["data"]["image_size"]
        )
        said = metrics.check_finite(logits(infer, dataset.test.images), f"on the test split, by peer {number}")
        found.append(metrics.evaluate(said, dataset.test.labels))
        save_weights(peer, run_dir / "checkpoints" / f"peer{number}.weights.h5")
        log.info("peer %d: test accuracy %.4f (last)", number, found[-1]["accuracy"])
    return found


def settings_of(config: Mapping, seed: int) -> loop.Settings:
    """The loop's settings for the configured stage."""
    data, role = config["data"], config[config["stage"]]
    return loop.Settings(
        seed=seed,
        epochs=role["epochs"],
        patience=role["patience"],
        held_out=not data["train_on_validation"],
        batch_size=role["batch_size"],
        image_size=data["image_size"],
        jitter=data["augment"]["jitter"],
        flip=data["augment"]["flip"],
        optimizer=config["optimizer"],
        temperature=loop.Annealed(config["temperature"], config["temperature_end"]),
        alpha=loop.Annealed(config["alpha"], config["alpha_end"], config["alpha_warmup_epochs"]),
        weights=choosing.weights(config["objective"]) if config["stage"] == "distill" else (),
        annealing=config["annealing"],
        shuffle=config["teacher"]["shuffle"] if config["stage"] == "distill" else "none",
        mixup=config["distill"]["mixup"] if config["stage"] == "distill" else 0.0,
    )


def _network(
    config: Mapping,
    dataset: datasets.Dataset,
    model_keys: Mapping,
    image_shape: tuple[int, int, int],
    settings: loop.Settings,
    policy: str,
    taught: Taught | None,
    start: Start | None,
) -> Network:
    """The network as it is before its first step, compiled; a sweep's next job may get the same one again."""

    def build(seed: int):
        model = models.build(model_keys, image_shape, dataset.num_classes, seed, policy)
        if start:
            start.begin(model)
        return model

    def make() -> Network:
        teaching = taught.make() if taught else None  # before the student: a teacher may be asked now and let go of
        network = Network(build, settings.seed, settings.optimizer, policy == "mixed_float16", teaching)
        network.run_steps = loop.compiled_steps(network, dataset.train, settings)
        network.infer = compiled_inference(
            network.model, dataset.test.images.shape[1:], config["evaluation_batch_size"], settings.image_size
        )
        return network

    # what is neither an input of the compiled functions nor a variable's value
    optimizer = {key: value for key, value in settings.optimizer.items() if key not in schedules.KEYS}
    depends = {
        "model": model_keys,
        "num_classes": dataset.num_classes,
        "precision": policy,
        "optimizer": optimizer,
        "batch_size": settings.batch_size,
        "evaluation_batch_size": config["evaluation_batch_size"],
        "data": config["data"],
        "dataset_sha256": dataset.sha256,
        "subset": settings.seed if config["data"]["train_fraction"] < 1 else None,
        "taught": taught.depends if taught else None,
        "start": start.depends if start else None,
    }
    network = kept(depends, make)
    network.reset(settings.seed)
    return network


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
