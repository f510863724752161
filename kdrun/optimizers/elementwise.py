"""Optimizers whose update of a weight depends on that weight, its gradients and the step alone.

Each is a function from its config's keys to a tf_keras optimizer. Imported without TensorFlow.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kdrun.registry import register


@register("optimizer", "adabelief")
def adabelief(**keys):
    """AdaBelief (arXiv 2010.07468), adabelief-tf's own implementation."""
    with _legacy_base_class():
        from adabelief_tf import AdaBeliefOptimizer
    return AdaBeliefOptimizer(print_change_log=False, **keys)


@register("optimizer", "adam")
def adam(**keys):
    """Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101)."""
    import tf_keras

    return tf_keras.optimizers.Adam(jit_compile=False, **keys)


@register("optimizer", "sgd")
def sgd(**keys):
    """Stochastic gradient descent with momentum; weight decay decoupled."""
    import tf_keras

    return tf_keras.optimizers.SGD(jit_compile=False, **keys)


@contextmanager
def _legacy_base_class() -> Iterator[None]:
    """Have tf.keras.optimizers.Optimizer be the base class from before TensorFlow 2.11.

    adabelief-tf subclasses whatever has that name when it is imported, and needs that one.
    """
    import tensorflow as tf
    import tf_keras

    public = tf.keras.optimizers.Optimizer
    tf.keras.optimizers.Optimizer = tf_keras.optimizers.legacy.Optimizer
    try:
        yield
    finally:
        tf.keras.optimizers.Optimizer = public
