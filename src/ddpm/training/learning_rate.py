"""The learning rate as a function of the optimizer step."""

import math
from collections.abc import Callable
from functools import partial


def warmup_and_decay(warmup_steps: int, decay_steps: int | None) -> Callable[[int], float]:
    """The factor on the learning rate at each step: a linear rise, then constant or a half cosine down to zero.

    It depends on the step alone, not on how long the run is to be, so that a longer run has the same first steps.

    Args:
        warmup_steps: the factor rises over these steps.
        decay_steps: the step at which the factor is zero, and stays so; constant after the rise if None.

    Raises:
        ValueError: a count is out of its range.
    """
    if warmup_steps < 0:
        raise ValueError(f"optimizer.warmup_steps={warmup_steps} must be at least 0.")
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise ValueError(f"optimizer.decay_steps={decay_steps} must be above optimizer.warmup_steps={warmup_steps}.")
    return partial(_factor, warmup_steps=warmup_steps, decay_steps=decay_steps)


def _factor(step: int, warmup_steps: int, decay_steps: int | None) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay_steps is None:
        return 1.0
    progress = min((step - warmup_steps) / (decay_steps - warmup_steps), 1.0)
    return (1 + math.cos(math.pi * progress)) / 2
