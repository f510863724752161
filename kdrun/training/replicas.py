"""Copies of a network on several devices, of one machine or of several, each of which takes its part of every batch.

tf.distribute brings the parts together; the variables are each device's own, and plain ones. Every device applies the
same sum of gradients to the same weights, so that all of them are in the same state after every step: the first one's
is what is validated and saved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import tensorflow as tf

from kdrun.runtime.cluster import Cluster
from kdrun.runtime.tensorflow import cluster_strategy, quiet


@dataclass(frozen=True)
class Part:
    """Which part of a batch is a device's: number `number` of `count` equal ones, in order."""

    number: int = 0
    count: int = 1

    def of(self, batch: tf.Tensor) -> tf.Tensor:
        """The part's rows of a whole batch, [batch, ...] -> [batch / count, ...]."""
        if self.count == 1:
            return batch
        size = batch.shape[0] // self.count
        return batch[self.number * size : (self.number + 1) * size]

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        """The sum of all devices' tensors of one shape; it has a gradient, which is the sum of theirs."""
        if self.count == 1:
            return x
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)

    def whole(self, own: tf.Tensor) -> tf.Tensor:
        """The whole batch, of which `own` are the part's rows. Only they have a gradient here: the others have theirs
        on their own devices."""
        if self.count == 1:
            return own
        context, size = tf.distribute.get_replica_context(), own.shape[0]
        everyones = context.all_gather(tf.stop_gradient(own), axis=0)
        before, after = everyones[: self.number * size], everyones[(self.number + 1) * size :]
        whole = tf.concat([before, own, after], axis=0)
        return tf.ensure_shape(whole, [self.count * size, *own.shape[1:]])


class Replicas:
    """The devices that share a training step: this machine's, in order; None is the one that TensorFlow takes by
    itself. Those of a cluster's other machines stand before and behind them."""

    def __init__(self, devices: Sequence[str | None] = (None,), cluster: Cluster | None = None):
        self.devices = list(devices)
        self.count = len(self.devices) * (cluster.size if cluster else 1)  # how many parts a batch has
        self.first = len(self.devices) * (cluster.task if cluster else 0)  # the number of the first one here
        self._strategy = None
        if self.count > 1:
            self._strategy = cluster_strategy() if cluster else _strategy(tuple(self.devices))

    def run(self, of_part: Callable[[Part], tuple]) -> list[tuple]:
        """What `of_part` gives for each part that is here, a tuple of tensors, on its device; part of a compiled
        step."""
        if self._strategy is None:
            return [of_part(Part())]

        def of_device():
            number = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
            return of_part(Part(int(number), self.count))

        found = self._strategy.run(of_device)
        return list(zip(*(self._strategy.experimental_local_results(each) for each in found), strict=True))


@cache  # its devices count what they exchange from the first one on: another one would have to begin where it is
def _strategy(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    with quiet():  # it says which devices, which we do
        return tf.distribute.MirroredStrategy(devices)


ALONE = Replicas()
