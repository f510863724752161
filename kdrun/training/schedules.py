"""Values that change over training: learning rate, temperature, alpha, objectives' weights.

They are inputs of the compiled step, so a schedule costs no tracing.
"""

import numpy as np

# of an optimizer's keys, those that are values here
KEYS = ("learning_rate", "schedule", "step_epochs", "step_factor", "warmup_epochs")


def learning_rates(optimizer, first_step: int, count: int, steps_per_epoch: int, total_steps: int) -> np.ndarray:
    """The learning rate of `count` steps from `first_step` (0-based) on; float32 [count].

    Linear from zero over `warmup_epochs`, then constant, a half cosine down to zero at `total_steps` (arXiv 1608.03983,
    without restarts), or in steps: times `step_factor` for each of `step_epochs` that are done.
    """
    steps = np.arange(first_step, first_step + count, dtype=np.float64)
    warmup = optimizer["warmup_epochs"] * steps_per_epoch
    factor = np.minimum(1.0, (steps + 1) / warmup) if warmup else np.ones_like(steps)
    if optimizer["schedule"] == "cosine":
        progress = np.clip((steps - warmup) / max(total_steps - warmup, 1.0), 0.0, 1.0)
        factor = factor * 0.5 * (1.0 + np.cos(np.pi * progress))
    if optimizer["schedule"] == "step":
        ends = np.array(optimizer["step_epochs"]) * steps_per_epoch
        factor = factor * optimizer["step_factor"] ** np.count_nonzero(steps[:, np.newaxis] >= ends, axis=1)
    return (optimizer["learning_rate"] * factor).astype(np.float32)


def annealed(
    start: float, end: float | None, how: str, warmup: float, first_step: int, count: int, total_steps: int
) -> np.ndarray:
    """A value that goes from `start` to `end` (None: stays) by the last step, linearly or along a half cosine; float32
    [count], for `count` steps from `first_step` (0-based) on. Over the first `warmup` steps it rises from zero."""
    steps = np.arange(first_step, first_step + count, dtype=np.float64)
    progress = steps / max(total_steps - 1, 1)
    if how == "cosine":
        progress = 0.5 * (1.0 - np.cos(np.pi * progress))
    values = start + ((start if end is None else end) - start) * progress
    return (values * (np.minimum(1.0, (steps + 1) / warmup) if warmup else 1.0)).astype(np.float32)
