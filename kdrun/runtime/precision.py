"""The machine: GPU memory, deterministic operations, and the precision that suits it."""

import tensorflow as tf


def prepare_machine() -> None:
    """Deterministic operations, and GPU memory taken as it is needed. Safe to call again."""
    tf.config.experimental.enable_op_determinism()
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # the GPU is in use already: growth was set before, or by whoever started it
            return


def policy(precision: str) -> str:
    """The tf_keras dtype policy for a configured precision.

    `auto` is float32 on a CPU, mixed_bfloat16 on a GPU of compute capability 8 or more, mixed_float16 on one of 7.
    """
    if precision != "auto":
        return precision
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "float32"
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
