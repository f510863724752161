"""Training steps compiled, several a call: the only place that knows devices."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import tensorflow as tf

from kdrun.data import batches, mixing
from kdrun.data.datasets import Split
from kdrun.data.rows import Images
from kdrun.errors import text
from kdrun.evaluation.inference import Infer
from kdrun.runtime import signals, workers
from kdrun.runtime.rendezvous import Chief, Follower
from kdrun.runtime.tensorflow import is_gpu
from kdrun.training import schedules
from kdrun.training.network import Network
from kdrun.training.replicas import ALONE, Replicas
from kdrun.training.settings import Settings
from kdrun.training.step import Inputs, TrainingSet, metric_names, training_step

_SECONDS_PER_CALL = 0.25  # how much work one call of the compiled steps is given: short enough to stop between calls
_MOST_BYTES = 1 << 25  # of images that are read for one call: there are three such blocks at a time
_MOST_STEPS = 1 << 20  # a call
# what TensorFlow raises where another machine is gone
_OF_OTHERS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


@dataclass(frozen=True)
class Program:
    """A network with what is compiled of it: `run_steps` as compiled_steps makes it, and its inference. `followers` are
    the same network on other devices of `replicas`, and `member` is what this process is in a cluster."""

    network: Network
    run_steps: Callable[..., tf.Tensor]
    infer: Infer
    on_disk: Images | None = None  # the training images, where they are not in the device's memory
    begins: str | None = None  # which weights it begins with, for the log, where they are not those drawn
    latency: dict[str, float] = field(default_factory=dict)  # measured once: a later job's weights take as long
    followers: Sequence[Network] = ()
    replicas: Replicas = ALONE
    member: Chief | Follower | None = None

    def follow(self) -> None:
        """Have the network on all devices as it is on the first one, after it was set from outside."""
        if self.replicas.first:
            self.network.follow(self.network, self.replicas.first)
        for number, each in enumerate(self.followers, start=1):
            each.follow(self.network, number)

    def share(self) -> None:
        """Have the network on all machines of a cluster as it is on the chief's."""
        if isinstance(self.member, Chief):
            self.member.tell([variable.numpy() for variable in self.network.state])
        elif self.member:
            self.network.take((self.member.told() or {})["arrays"])
            self.follow()


def is_on_device(asked: str, images: Images) -> bool:
    """Whether training images are held in the device's memory: as `asked`, on or off; for auto, what is in memory
    anyway, and what is on disk where it takes a quarter of the memory that is free, or less."""
    if asked != "auto":
        return asked == "on"
    return isinstance(images, np.ndarray) or images.nbytes <= workers.available_memory() // 4


def compiled_steps(
    networks: Sequence[Network],
    split: Split,
    settings: Settings,
    on_device: bool = True,
    replicas: Replicas = ALONE,
) -> Callable[..., tf.Tensor]:
    """A compiled function that takes some steps: (indices, views, values, mixes, draws, cached, images) -> metrics.

    Its arguments are those of step.Inputs with a first axis of steps, inputs so that changing them traces nothing
    anew; images are there where the split's are not to be held `on_device`. The metrics are float32 [steps,
    len(step.metric_names)]. Of `settings`, batch size, preprocessing, whether images are mixed, and label smoothing are
    used. There is a network for each of `replicas`, on its device.
    """
    supervision = networks[0].supervision
    labelled = np.count_nonzero(split.labels >= 0) / len(split.labels)
    training_sets: list[TrainingSet] = []
    for device in replicas.devices:
        if training_sets and not is_gpu(device):  # parts of a CPU have one memory
            training_sets.append(training_sets[0])
            continue
        with tf.device(device):
            held = tf.constant(np.asarray(split.images)) if on_device else None
            training_sets.append(TrainingSet(held, tf.constant(split.labels), labelled))
    metrics = len(metric_names(supervision.objectives))
    batch = tf.TensorSpec([None, settings.batch_size], tf.int32)
    values = tf.TensorSpec([None, 3 + len(supervision.objectives)], tf.float32)
    mix, draw = tf.TensorSpec([None, 5], tf.float32), tf.TensorSpec([None, 2], tf.int32)
    cached = {
        name: tf.TensorSpec([None, settings.batch_size, *array.shape[2:]], tf.float32)
        for name, array in supervision.cached.items()
    }

    images = () if on_device else tf.TensorSpec([None, settings.batch_size, *split.images.shape[1:]], tf.uint8)

    take = partial(training_step, networks, training_sets, settings, replicas=replicas)
    if replicas.count > 1:
        # Not a part of the loop's graph, which has a cycle: there TensorFlow's pass for oneDNN comes to a max-pooling
        # before its gradient in one process and after it in the next, and takes another kernel for that gradient.
        # One device's graph was not seen to differ (159 runs); its steps keep the bits that they had
        take = tf.function(take, experimental_attributes={"_noinline": True})

    @tf.function(input_signature=[batch, batch, values, mix, draw, cached, images])
    def run_steps(indices, views, values, mixes, draws, cached, images):
        rows = tf.TensorArray(tf.float32, tf.shape(indices)[0], element_shape=[metrics])
        for k in tf.range(tf.shape(indices)[0]):
            of_step = {name: array[k] for name, array in cached.items()}
            of_images = None if on_device else images[k]
            inputs = Inputs(indices[k], views[k], values[k], mixes[k], draws[k], of_step, of_images)
            rows = rows.write(k, take(inputs))
        return rows.stack()

    return run_steps


def take_steps(program: Program, settings: Settings, step: int, end: int, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Take the steps from `step` (0-based) to below `end`, in calls of about _SECONDS_PER_CALL; yields the metrics.

    They are float32 [steps of the call, len(step.metric_names)]. Raises Stopped between calls when a signal asks it to.
    The other tasks of a cluster, whose chief this is, take the same steps in the same calls; Lost where one is gone.
    """
    asked_for = batches.shuffled(settings.seed, labels, settings.shuffle)  # whose teacher outputs each image gets
    most = _most_steps(program.on_disk, settings.batch_size)
    chief = program.member if isinstance(program.member, Chief) else None
    count = wanted = 1
    with ThreadPoolExecutor(1) as reader:  # what the next call is given is read while this one computes

        def read(step: int, count: int) -> Future:
            if chief:
                chief.tell(read=[step, count])
            return reader.submit(_inputs, program, settings, len(labels), asked_for, step, count)

        coming = read(step, count) if step < end else Future()
        while step < end:
            if chief:
                chief.check()
            signals.check()
            given, taken, first = coming.result(), count, step
            step += taken
            if step < end:
                count = min(wanted, end - step)
                coming = read(step, count)
            if chief:
                chief.tell(go=first)
            started = time.perf_counter()
            yield _taken(program, given)
            affordable = int(_SECONDS_PER_CALL * taken / (time.perf_counter() - started))
            wanted = min(max(1, affordable), 2 * wanted, most)


def follow_steps(program: Program, follower: Follower, settings: Settings, labels: np.ndarray) -> None:
    """Take the steps that the chief of a cluster takes, until it has ended. Raises Ended where that is for a problem,
    Lost where another task is gone."""
    asked_for = batches.shuffled(settings.seed, labels, settings.shuffle)
    coming: dict[int, Future] = {}  # by the first of the steps
    with ThreadPoolExecutor(1) as reader:
        while (message := follower.told()) is not None:
            if "read" in message:
                step, count = message["read"]
                coming[step] = reader.submit(_inputs, program, settings, len(labels), asked_for, step, count)
            else:
                _taken(program, coming.pop(message["go"]).result())


def _taken(program: Program, given: tuple) -> np.ndarray:
    """The metrics of the steps of a call."""
    if program.member is None:
        return program.run_steps(*given).numpy()
    try:
        with program.member.together():
            return program.run_steps(*given).numpy()
    except _OF_OTHERS as error:
        raise program.member.lost(text(error)) from error


def _most_steps(on_disk: Images | None, batch_size: int) -> int:
    """How many steps' images are read at a time at most."""
    return _MOST_STEPS if on_disk is None else max(1, _MOST_BYTES // (batch_size * math.prod(on_disk.shape[1:])))


def _inputs(program: Program, settings: Settings, size: int, asked_for: np.ndarray, step: int, count: int) -> tuple:
    """The arguments of compiled steps, for `count` of them from `step` on."""
    views, cached = settings.augmentation.view_count, program.network.supervision.cached
    per_epoch = settings.steps_per_epoch(size)
    indices, chosen = batches.stream(settings.seed, step, count, settings.batch_size, size, views)
    values = step_values(settings, step, count, per_epoch)
    mixes = mixing.mixes(settings.seed, step, count, settings.mixup, settings.cutmix)
    draws = np.stack([np.full(count, settings.seed), np.arange(step, step + count)], axis=1).astype(np.int32)
    of_steps = {name: array[chosen, asked_for[indices]] for name, array in cached.items()}
    images = () if program.on_disk is None else program.on_disk[indices]
    return indices, chosen, values, mixes, draws, of_steps, images


def step_values(settings: Settings, step: int, count: int, per_epoch: int) -> np.ndarray:
    """Learning rate, temperature, alpha and the objectives' weights of some steps, float32 [count, 3 + objectives]."""
    total = per_epoch * settings.epochs
    columns = [schedules.learning_rates(settings.optimizer, step, count, per_epoch, total)]
    for start, end, warmup_epochs in (settings.temperature, settings.alpha, *settings.weights):
        warmup = warmup_epochs * per_epoch
        columns.append(schedules.annealed(start, end, settings.annealing, warmup, step, count, total))
    return np.stack(columns, axis=1)
