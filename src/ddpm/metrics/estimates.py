"""Means with standard errors: single numbers, and curves over the timesteps."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ddpm.runs.files import write_csv

MAX_BINS = 100
MIN_IN_BIN = 20  # values


class Estimate(NamedTuple):
    """A mean over images and its standard error."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Return the estimate from one value for each image, [N]."""
        return cls(values.mean().item(), standard_error(values).item())

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the difference of two independent estimates."""
        return Estimate(self.mean - other.mean, math.hypot(self.se, other.se))


def standard_error(values: Tensor) -> Tensor:
    """Return the standard error of the mean over the first dimension; NaN for a single value."""
    return values.std(dim=0) / len(values) ** 0.5 if len(values) > 1 else values[0] * torch.nan


class Curve(NamedTuple):
    """Means over timesteps in bins; bin i holds edges[i] ≤ t < edges[i+1]."""

    edges: Tensor
    """int64 [bins + 1]"""
    mean: Tensor
    """[bins]"""
    se: Tensor
    """standard error of the mean, [bins]; values of one image are dependent and count together; NaN for one image"""
    n: Tensor
    """number of values in each bin, int64 [bins]"""

    @classmethod
    def of(cls, timesteps: Tensor, values: Tensor, edges: Tensor) -> Self:
        """Return the curve of `values` [N, K], a row an image, at `timesteps` [N, K] that cover the bins evenly."""
        bins = _bins(timesteps, edges)
        empty = values.new_zeros(len(values), len(edges) - 1)
        counts = empty.scatter_add(1, bins, torch.ones_like(values))
        n, images = counts.sum(0), (counts > 0).sum(0)
        mean = empty.scatter_add(1, bins, values).sum(0) / n
        deviation = empty.scatter_add(1, bins, values - mean[bins])  # [N, bins]
        # A ratio of two sums over images: its standard error, linearised.
        se = (deviation.square().sum(0) * (images / (images - 1))).sqrt() / n
        return cls(edges, mean, se, n.long())

    def sum(self, timesteps: Tensor, values: Tensor) -> tuple[float, Tensor]:
        """Return the sum of the means over all timesteps, and the deviation of each image from the sum, [N].

        `standard_error` of the deviations is the standard error of the sum. The deviation of an image is the weighted
        distance of its values from the curve. So it does not count as an error that images have different timesteps,
        nor that some timesteps occur once more than others.

        Args:
            timesteps, values: the arguments of `Curve.of`, [N, K].
        """
        widths = self.edges.diff()
        bins = _bins(timesteps, self.edges)
        deviation = ((widths / self.n)[bins] * (values - self.mean[bins])).sum(dim=1)
        return (widths * self.mean).sum().item(), len(values) * deviation

    def minus(self, other: "Curve") -> "Curve":
        """Return the difference of two independent curves in the same bins; n is the smaller of the two."""
        assert torch.equal(self.edges, other.edges)
        se = torch.hypot(self.se, other.se)
        return Curve(self.edges, self.mean - other.mean, se, torch.minimum(self.n, other.n))

    def over(self, scale: Tensor) -> "Curve":
        """Return the curve with mean and standard error divided by `scale` [bins]."""
        return self._replace(mean=self.mean / scale, se=self.se / scale)


def _bins(timesteps: Tensor, edges: Tensor) -> Tensor:
    """Return the bin of each timestep."""
    return torch.bucketize(timesteps, edges, right=True) - 1


def bin_edges(num_steps: int, num_values: int, at_most: int = MAX_BINS) -> Tensor:
    """Return the edges of bins for `num_values` values spread evenly over 1 … T-1, from 1 to T, int64 [bins + 1].

    The bins are narrow near t = 1, where the divergences change fastest, and the width of a bin grows linearly with
    its index. Each bin is wide enough for `MIN_IN_BIN` values.
    """
    width = math.ceil(MIN_IN_BIN * (num_steps - 1) / max(num_values, 1))  # timesteps
    most = max((num_steps - 1) // width, 1)  # bins of this width
    fractions = torch.linspace(0, 1, at_most + 1, dtype=torch.float64)
    edges = 1 + width * (most * fractions**2).round().long().unique()
    edges[-1] = num_steps
    return edges


def write_curves(path: Path, curves: Mapping[str, Curve], unit: str) -> None:
    """Write a CSV file with one row for each bin of each curve."""
    rows: list[list[Any]] = []
    for name, curve in curves.items():
        columns = (curve.edges[:-1], curve.edges[1:] - 1, curve.mean, curve.se, curve.n)
        rows += ([name, *row] for row in zip(*(column.tolist() for column in columns), strict=True))
    write_csv(path, ["curve", "t_from", "t_to", unit, "se", "n"], rows)
