"""Averages of the weights whose length is chosen after training (Karras et al. 2024, "post-hoc EMA").

The power-function average of length σ after n optimizer steps weights step k by (k/n)^γ up to a constant. Its length is
the standard deviation of this weighting as a share of the training, σ² = (γ+1) / ((γ+2)²·(γ+3)): 0.1 averages over the
last 10 % or so. It grows with the training, so it has no decay to choose.

`EMASnapshots` stores a few such averages again and again during training. An average of any other length is a linear
combination of the stored ones, found by least squares between the weightings (section 3 and appendix C of the paper).
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from ddpm.errors import UserError
from ddpm.runs.checkpoints import load_checkpoint
from ddpm.training.averaging import WeightAverage

SHORTEST, LONGEST = 0.01, 0.25
"""lengths that can be asked for; 0.289 would be the plain mean of all steps"""
SNAPSHOT = re.compile(r"step=(\d+)_length=([\d.]+)\.ckpt")


def gamma(length: float) -> float:
    """Return the exponent γ of the average of this length.

    Raises:
        ValueError: the length is not in [0.01, 0.25].
    """
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(f"the length {length} of an average must be between {SHORTEST} and {LONGEST}.")
    return float(np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max())


def power_average(network: nn.Module, length: float) -> WeightAverage:
    """Return the average of this length of a network's weights; update it after each step."""
    return WeightAverage(network, partial(_kept, gamma=gamma(length)))


def _kept(n: int, gamma: float) -> float:
    return float((1 - 1 / (n + 1)) ** (gamma + 1))


def snapshot_name(step: int, length: float) -> str:
    return f"step={step}_length={length}.ckpt"


class Snapshot(NamedTuple):
    path: Path
    step: int
    length: float


def snapshots_in(folder: Path) -> list[Snapshot]:
    """Return the stored averages in a folder, the oldest first."""
    matches = [match for path in folder.glob("*.ckpt") if (match := SNAPSHOT.fullmatch(path.name))]
    return sorted((Snapshot(folder / m[0], int(m[1]), float(m[2])) for m in matches), key=lambda s: (s.step, s.length))


class Average(NamedTuple):
    weights: dict[str, Tensor]
    """state dict of the network"""
    step: int
    """after which optimizer step"""
    error: float
    """of the weighting: squared difference from the one that was asked for, over its square"""


def reconstruct(folder: Path, length: float, at_most: int) -> Average:
    """Return the average of this length at the newest snapshot that is not after optimizer step `at_most`.

    Raises:
        UserError: the length is out of range, there are no snapshots, or one cannot be read.
    """
    stored = [snapshot for snapshot in snapshots_in(folder) if snapshot.step <= at_most]
    if not stored:
        raise UserError(
            f"ema.length needs snapshots of averages in {folder} up to step {at_most}, and there are none. "
            "Train with callbacks=[default,ema_snapshots]."
        )
    step = stored[-1].step
    try:
        factors, error = coefficients([s.step for s in stored], [gamma(s.length) for s in stored], step, gamma(length))
    except ValueError as problem:
        raise UserError(f"ema.length={length}: {problem}") from problem
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(stored, factors, strict=True):
        weights = load_checkpoint(snapshot.path)["state_dict"]
        if total and {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in total.items()}:
            raise UserError(f"{snapshot.path} holds weights of another network than {stored[0].path}.")
        for name, weight in weights.items():
            is_number = weight.is_floating_point()
            part = weight.double() * factor if is_number else weight  # counters are those of the newest snapshot
            total[name] = total[name] + part if is_number and name in total else part
    return Average(total, step, error)


def coefficients(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> tuple[list[float], float]:
    """Return the factors of stored averages whose sum is closest to the average with `gamma` at `step`.

    Args:
        steps, gammas: of the stored averages.

    Returns:
        the factors, and the squared error of the weighting over its square.
    """
    t, g = np.array(steps, dtype=np.float64), np.array(gammas)
    products = _inner_product(t[:, None], g[:, None], t[None], g[None])
    wanted = _inner_product(t, g, float(step), gamma)
    factors = np.linalg.lstsq(products, wanted, rcond=None)[0]
    square = _inner_product(float(step), gamma, float(step), gamma)
    error = 1 + (factors @ products @ factors - 2 * factors @ wanted) / square
    return factors.tolist(), max(0.0, float(error))


def _inner_product(t1: Any, g1: Any, t2: Any, g2: Any) -> Any:
    """Return ∫ p₁(τ) p₂(τ) dτ of the weightings p(τ) = (γ+1) τ^γ / t^(γ+1) on [0, t]; numbers or arrays."""
    logs = (g1 + g2 + 1) * np.log(np.minimum(t1, t2)) - (g1 + 1) * np.log(t1) - (g2 + 1) * np.log(t2)
    return (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * np.exp(logs)
