"""The exponential moving average (EMA) of a network's weights."""

from functools import partial

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """A frozen copy of `network`; its `update_parameters(network)` moves its weights towards those of `network`.

    Update n keeps min(decay, (1 + n)/(10 + n)) of the average: less in the first steps, when the weights change fast.
    Buffers are copied, not averaged.

    Raises:
        ValueError: `decay` is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema.decay={decay} must be at least 0 and below 1.")
    average = AveragedModel(network, multi_avg_fn=partial(_average, decay=decay), use_buffers=False)
    return average.requires_grad_(False).eval()


def _average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor, decay: float) -> None:
    n = num_averaged.item()
    get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, num_averaged)
