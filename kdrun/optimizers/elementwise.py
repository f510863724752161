"""Optimizers whose update of a weight depends on that weight, its gradients and the step alone.

Each is a function from its config's keys to a tf_keras optimizer. Imported without TensorFlow.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kdrun.config.rules import Amount, Positive, Rate
from kdrun.registry import register


@register("optimizer", "adabelief", compiles=lambda keys: True)
def adabelief(
    *, learning_rate: Positive, beta_1: Rate, beta_2: Rate, epsilon: Positive, weight_decay: Amount, rectify: bool
):
    """AdaBelief (arXiv 2010.07468), adabelief-tf's own implementation."""
    with _legacy_base_class():
        from adabelief_tf import AdaBeliefOptimizer
    return AdaBeliefOptimizer(
        learning_rate=learning_rate,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        rectify=rectify,
        print_change_log=False,
    )


@register("optimizer", "adam", compiles=lambda keys: keys["weight_decay"] != 0)
def adam(*, learning_rate: Positive, beta_1: Rate, beta_2: Rate, epsilon: Positive, weight_decay: Amount):
    """Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101)."""
    import tf_keras

    if not weight_decay:  # the older class has no decay, and its update is a single operation
        return tf_keras.optimizers.legacy.Adam(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    return tf_keras.optimizers.Adam(
        learning_rate=learning_rate,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        jit_compile=False,
    )


@register("optimizer", "sgd", compiles=lambda keys: True)
def sgd(*, learning_rate: Positive, momentum: Rate, nesterov: bool, weight_decay: Amount):
    """Stochastic gradient descent with momentum; weight decay decoupled."""
    import tf_keras

    return tf_keras.optimizers.SGD(
        learning_rate=learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        jit_compile=False,
    )


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
