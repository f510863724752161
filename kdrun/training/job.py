"""Training jobs: all that a network's training needs in, what run.json calls results out."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from kdrun.data.datasets import Dataset
from kdrun.errors import InputError
from kdrun.evaluation import metrics
from kdrun.evaluation.inference import Infer, compiled_inference, latency, logits
from kdrun.models import build as models
from kdrun.models import surgery
from kdrun.models.synchronisation import synchronise
from kdrun.models.weights import save_weights
from kdrun.runtime import terminal
from kdrun.runtime.cluster import Cluster
from kdrun.runtime.rendezvous import Chief, Follower
from kdrun.runtime.tensorflow import device_names
from kdrun.tracking.tracker import Trackers
from kdrun.training import loop, schedules, state
from kdrun.training.execute import Program, compiled_steps, follow_steps, is_on_device
from kdrun.training.network import Network, reuse_or_build
from kdrun.training.replicas import Replicas
from kdrun.training.settings import Settings
from kdrun.training.supervision import LABELS_ALONE, Supervision

log = logging.getLogger(__name__)

_LOGS = 500_000  # bytes of a short run's logs, curves and pictures


class SupervisionSpec(NamedTuple):
    """How supervision is made, and all that it depends on, as plain values.

    `again` makes of it that of another device, whose live teachers are copies of its own.
    """

    compile_key: Mapping
    build: Callable[[], Supervision]
    again: Callable[[Supervision], Supervision] = lambda first: first


class InitialWeights(NamedTuple):
    """How a model gets weights other than those that are drawn, and all that they depend on, as plain values.

    `assign(model)` may return which these are, for the log; `factors(model)` is what the learning rate is times for
    each of its trainable variables.
    """

    compile_key: Mapping
    assign: Callable
    factors: Callable | None = None


ON_LABELS = SupervisionSpec({}, lambda: LABELS_ALONE)
AS_DRAWN = InitialWeights({}, lambda model: None)


@dataclass(frozen=True)
class TrainingJob:
    """A network to be trained.

    `name` is what log lines call it, `model` its model's name and keys, `policy` a tf_keras dtype policy's name, and
    `save_every` the seconds between training states. `data_key` holds, as plain values, what the dataset was made
    with. `on_device` is as execute.is_on_device has it. Each batch is spread over `devices`, of each machine where this
    process is a `member` of a cluster.
    """

    name: str
    dataset: Dataset
    data_key: Mapping
    model: Mapping
    policy: str
    settings: Settings
    evaluation_batch_size: int
    save_every: float
    measure_latency: bool
    on_device: str = "on"
    devices: int = 1
    sync_batch_norm: bool = False
    member: Chief | Follower | None = None
    supervision: SupervisionSpec = ON_LABELS
    initial_weights: InitialWeights = AS_DRAWN

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of an image as networks see it: height, width, channels."""
        size = self.settings.preparation.image_size
        return (size, size, self.dataset.train.images.shape[3])

    @property
    def steps_per_epoch(self) -> int:
        """Of this job's settings, on its training set."""
        return self.settings.steps_per_epoch(len(self.dataset.train.labels))

    @property
    def cluster(self) -> Cluster | None:
        """The machines that share it."""
        return self.member.cluster if self.member else None

    @property
    def compile_key(self) -> dict:
        """What is neither an input of the compiled functions nor a variable's value, as plain values."""
        optimizer = self.settings.optimizer
        return {
            "model": self.model,
            "num_classes": self.dataset.num_classes,
            "precision": self.policy,
            "optimizer": {key: value for key, value in optimizer.items() if key not in schedules.KEYS},
            "batch_size": self.settings.batch_size,
            "evaluation_batch_size": self.evaluation_batch_size,
            "mixed": [bool(self.settings.mixup), bool(self.settings.cutmix)],
            "label_smoothing": self.settings.label_smoothing,
            "quantize": self.settings.quantize,
            "devices": [self.devices, self.cluster, self.sync_batch_norm],
            "preparation": self.settings.preparation,
            "data": self.data_key,
            "dataset_sha256": self.dataset.sha256,
            "supervision": self.supervision.compile_key,
            "initial_weights": self.initial_weights.compile_key,
        }


def prepare(job: TrainingJob) -> Program:
    """Build a job's network as it is before its first step, compiled; a sweep's next job may get the same one again."""
    what = "the network" if job.supervision is ON_LABELS else "the student, with what teaches it"
    with terminal.doing(f"building {what}"):
        program = reuse_or_build(job.compile_key, lambda: _build(job))
        program.network.reset(job.settings.seed)
        program.follow()
    return program


def describe(program: Program) -> dict:
    """What a run's record says of its network."""
    network = program.network
    return {
        "num_classes": network.model.output.shape[-1],
        "multiply_adds": surgery.multiply_adds(network.model),
        "parameters": {
            "total": network.model.count_params(),
            "trainable": sum(v.shape.num_elements() for v in network.model.trainable_variables),
            # trained beside the network, and no part of it
            "objectives": sum(v.shape.num_elements() for v in network.learned.trainable_variables),
        },
        # the last two training states and the next one beside them; best and last weights likewise; logs and curves
        "room_needed": 3 * state.size(network) + 3 * state.size_of(network.model.variables) + _LOGS,
    }


def run(job: TrainingJob, program: Program, run_dir: Path, trackers: Trackers) -> dict:
    """Train a prepared network; returns what run.json calls results. Files and errors are those of loop.train."""
    settings = job.settings
    log.info(
        "%s: %s, %s parameters, %s, %d epochs of %d steps of %d images%s -> %s",
        job.name,
        job.model["name"],
        f"{program.network.model.count_params():,}",
        job.policy,
        settings.epochs,
        job.steps_per_epoch,
        settings.batch_size,
        _spread(job),
        run_dir,
    )
    if program.begins:
        log.info("%s: begins with %s", job.name, program.begins)
    if quantized := program.network.quantized:
        left = ", ".join(f"{count} {kind}" for kind, count in quantized.left.items())
        left = f"; the weights of {left} are not" if left else ""
        log.info(
            "%s: weights, and values at %d places, are rounded as for %s%s",
            job.name,
            quantized.ranges.shape[0],
            settings.quantize,
            left,
        )
    results = loop.train(program, job.dataset, settings, run_dir, trackers, job.save_every)
    if (devices := program.replicas.count) > 1:
        results["images_per_second_of_each_device"] = round(results["images_per_second"] / devices, 1)
    if job.measure_latency:
        if not program.latency:
            program.latency.update(latency(program.network.model, job.dataset.test.images, settings.preparation))
        results["latency"] = program.latency
    if program.network.peers:
        with program.network.averaged():
            results["peers"] = _peers(job, program.network, run_dir)
    return results


def follow(job: TrainingJob, program: Program, follower: Follower) -> None:
    """Train a prepared network as the chief of a cluster does, for as long as it does; nothing is written."""
    log.info("%s: %s, as %s of %d", job.name, job.model["name"], follower.name, follower.cluster.size)
    program.share()
    follow_steps(program, follower, job.settings, job.dataset.train.labels)


def _spread(job: TrainingJob) -> str:
    """Over what a job is spread, for the log."""
    parts = [f"{job.devices} devices"] if job.devices > 1 else []
    parts += [f"{job.cluster.size} machines"] if job.cluster else []
    return f" on {' of each of '.join(parts)}" if parts else ""


def _build(job: TrainingJob) -> Program:
    begins: list[str | None] = []
    replicas = Replicas(device_names(job.devices), job.cluster)

    def build(seed: int):
        model = models.build(job.model, job.image_shape, job.dataset.num_classes, seed, job.policy)
        if replicas.count > 1:
            _check_is_flat(job, model)
            if job.sync_batch_norm:
                synchronise(model)
        models.initialise(model, job.model)
        begins.append(job.initial_weights.assign(model))
        return model

    supervision = job.supervision.build()  # before the student: a teacher may be asked now and let go of
    scale_loss = job.policy == "mixed_float16"
    factors = job.initial_weights.factors

    networks: list[Network] = []
    for device in replicas.devices:
        with tf.device(device):
            if networks and supervision.preparations:  # a teacher beside the student: one a device
                supervision = job.supervision.again(supervision)
            settings = job.settings
            networks.append(
                Network(build, settings.seed, settings.optimizer, scale_loss, supervision, factors, settings.quantize)
            )
    first, *followers = networks
    on_device = is_on_device(job.on_device, job.dataset.train.images)
    run_steps = compiled_steps(networks, job.dataset.train, job.settings, on_device, replicas)
    on_disk = None if on_device else job.dataset.train.images
    infer = _inference(job, first.model)
    program = Program(first, run_steps, infer, on_disk, begins[0], {}, followers, replicas, job.member)
    if job.member:
        job.member.agree(_facts(job, first), "All are to have the same teachers, and devices of one kind")
    return program


def _facts(job: TrainingJob, network: Network) -> dict:
    """What the tasks of a cluster have in common, or would wait for each other for ever."""
    source = network.supervision.source
    return {
        "precision": job.policy,
        "number of parameters": network.model.count_params(),
        "way to ask teachers": type(source).__name__,
        "number of variables": len(network.state),
    }


def _check_is_flat(job: TrainingJob, model) -> None:
    """Raises InputError for a network with another one inside, whose dropout and batch normalisation nobody here
    sees."""
    if inside := [layer.name for layer in model.layers if isinstance(layer, tf_keras.Model)]:
        raise InputError(
            f"devices={job.devices}: {job.model['name']} has a network inside, {inside[0]}, whose dropout and batch "
            "normalisation cannot be spread over several devices. Give devices=1."
        )


def _inference(job: TrainingJob, model) -> Infer:
    return compiled_inference(
        model, job.dataset.test.images.shape[1:], job.evaluation_batch_size, job.settings.preparation
    )


def _peers(job: TrainingJob, network: Network, run_dir: Path) -> list[dict]:
    """Save the peers' last weights, and measure them on the test set."""
    test, found = job.dataset.test, []
    for number, peer in enumerate(network.peers, start=1):
        peer_logits = logits(_inference(job, peer), test.images)
        metrics.check_finite(peer_logits, f"on the test split, by peer {number}")
        found.append(metrics.evaluate(peer_logits, test.labels))
        save_weights(peer, run_dir / "checkpoints" / f"peer{number}.weights.h5")
        log.info("peer %d: test accuracy %.4f (last)", number, found[-1]["accuracy"])
    return found
