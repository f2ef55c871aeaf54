"""Guidance: moves the network's output away from that of a weaker network (Ho & Salimans 2022; Karras et al. 2024).

    guided = guidance(network, num_classes);    guided(x_t, t, **condition) -> output

The result is called like a network, so every sampler takes it. Guidance acts on the raw output, of whatever type: ε,
x_0, v and the posterior mean are affine functions of each other, so all types give the same x_0 before it is clipped.

To add another guidance, write a subclass of `Guidance` that implements `pair`, and a YAML in `conf/guidance/`.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import Network, Timesteps


class Guidance(ABC):
    """Base class. The guided output is weak + scale · (output - weak).

    Args:
        scale: 1 is the network itself; a larger scale gives better fitting, less varied images.
        interval: the first and the last timestep of guidance; outside them the network works alone
            (Kynkäänniemi et al. 2024). None means all timesteps.

    Raises:
        ValueError: `scale` is negative or not finite, or `interval` is no interval of timesteps.
    """

    def __init__(self, scale: float, interval: Sequence[int] | None = None):
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"guidance: scale must be a finite number, at least 0, not {scale}.")
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
            raise ValueError(
                f"guidance: interval must be the first and the last timestep, as in [100,600], not {list(interval)}."
            )
        self.scale = scale
        self.interval = None if interval is None else (operator.index(interval[0]), operator.index(interval[1]))

    @property
    def acts(self) -> bool:
        """Whether the guided output differs from the network's."""
        return self.scale != 1

    def __call__(self, network: Network, num_classes: int | None = None) -> Network:
        """Return the guided network.

        Args:
            num_classes: the label that means "no label"; None for an unconditional network.
        """
        if not self.acts:
            return network

        def guided(x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
            inside = self.covers(t)
            if self.interval is not None and not inside.any():
                return network(x_t, t, **condition)
            output, weak = self.pair(network, num_classes, x_t, t, **condition)
            return torch.where(inside.view(-1, 1, 1, 1), weak + self.scale * (output - weak), output)

        return guided

    @abstractmethod
    def pair(
        self, network: Network, num_classes: int | None, x_t: Images, t: Timesteps, **condition: Any
    ) -> tuple[Images, Images]:
        """Return the outputs of the network and of the weaker network, float32, [B, C, H, W] each."""

    def covers(self, t: Timesteps) -> Bool[Tensor, " B"]:
        """Return whether guidance acts at each timestep."""
        first, last = self.interval or (0, math.inf)
        return (t >= first) & (t <= last)

    def evaluations(self, timesteps: Timesteps) -> int:
        """Return the network evaluations of one image at these timesteps; those of a weaker network count as well."""
        return len(timesteps) + (int(self.covers(timesteps).sum()) if self.acts else 0)


class ClassifierFree(Guidance):
    """The weaker network is the same one without the labels (Ho & Salimans 2022). One batch contains both halves."""

    def pair(
        self, network: Network, num_classes: int | None, x_t: Images, t: Timesteps, **condition: Any
    ) -> tuple[Images, Images]:
        labels = condition.pop("labels")
        assert num_classes is not None
        both = torch.cat([labels, torch.full_like(labels, num_classes)])
        output, weak = network(torch.cat([x_t, x_t]), torch.cat([t, t]), labels=both, **condition).float().chunk(2)
        return output, weak


class Autoguidance(Guidance):
    """The weaker network is another one, such as an earlier checkpoint of the run (Karras et al. 2024).

    Both networks get the labels, if there are labels.

    Args:
        weak: weak(x_t, t, **condition) -> output, of the same type. It is moved to the device of the images.
    """

    def __init__(self, weak: nn.Module, scale: float, interval: Sequence[int] | None = None):
        super().__init__(scale, interval)
        self.weak = weak

    def pair(
        self, network: Network, num_classes: int | None, x_t: Images, t: Timesteps, **condition: Any
    ) -> tuple[Images, Images]:
        weak = self.weak.to(x_t.device)
        return network(x_t, t, **condition).float(), weak(x_t, t, **condition).float()
