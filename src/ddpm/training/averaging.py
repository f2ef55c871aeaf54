"""The exponential moving average (EMA) of a network's weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage(AveragedModel):
    """A frozen copy of `network`; `update_parameters(network)` moves its weights towards those of `network`.

    Buffers are copied, not averaged. torch's class reads the number of updates from the device in each update, and so
    waits for a GPU. Here the number is read once.

    Args:
        kept: kept(n) -> the factor of the average in update n; update 0 copies the weights.
    """

    def __init__(self, network: nn.Module, kept: Callable[[int], float]):
        super().__init__(network)
        self.kept = kept
        self.updates: int | None = None
        """the value of `n_averaged`, which is on the device; None before it is read"""
        self.register_load_state_dict_post_hook(_forget_updates)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        if self.updates is None:
            self.updates = int(self.n_averaged)
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        if self.updates == 0:
            for average, weight in zip(averaged, current, strict=True):
                average.copy_(weight)
        else:
            get_ema_multi_avg_fn(self.kept(self.updates))(averaged, current, None)
        for copy, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            copy.copy_(buffer)
        self.updates += 1
        self.n_averaged += 1


def _forget_updates(average: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(average, WeightAverage)
    average.updates = None


def moving_average(network: nn.Module, decay: float) -> WeightAverage:
    """Return the exponential moving average of a network.

    Update n keeps min(decay, (1 + n)/(10 + n)) of the average: less in the first steps, when the weights change fast.

    Raises:
        ValueError: `decay` is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema.decay={decay} must be at least 0 and below 1.")
    return WeightAverage(network, partial(_kept, decay=decay))


def _kept(n: int, decay: float) -> float:
    return min(decay, (1 + n) / (10 + n))
