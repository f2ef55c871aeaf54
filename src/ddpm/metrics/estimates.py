"""Means with their standard errors: single numbers, and curves over the timesteps."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

MAX_BINS = 100
MIN_IN_BIN = 20  # values


class Estimate(NamedTuple):
    """A mean over images and its standard error."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """From a value for each image, [N]."""
        return cls(values.mean().item(), standard_error(values).item())

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates."""
        return Estimate(self.mean - other.mean, math.hypot(self.se, other.se))


def standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first dimension; NaN where one value is all there is."""
    return values.std(dim=0) / len(values) ** 0.5 if len(values) > 1 else values[0] * torch.nan


class Curve(NamedTuple):
    """A mean over the timesteps, in bins: bin i holds edges[i] ≤ t < edges[i+1]."""

    edges: Tensor
    """int64 [bins + 1]"""
    mean: Tensor
    """[bins]"""
    se: Tensor
    """of the mean, [bins]; an image's values count together, as they are not independent; NaN for one image alone"""
    n: Tensor
    """values in the bin, int64 [bins]"""

    @classmethod
    def of(cls, timesteps: Tensor, values: Tensor, edges: Tensor) -> Self:
        """From `values` [N, K], a row for each image, at `timesteps` [N, K] that cover the bins evenly."""
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
        """The sum of the means of all timesteps; and each image's deviation from it, [N], whose spread is its error.

        Of the same `timesteps` and `values` [N, K]. That images were asked at different timesteps, and some
        timesteps once more than others, is no error: an image deviates as far as its values are from the curve.
        """
        widths = self.edges.diff()
        bins = _bins(timesteps, self.edges)
        deviation = ((widths / self.n)[bins] * (values - self.mean[bins])).sum(dim=1)
        return (widths * self.mean).sum().item(), len(values) * deviation

    def minus(self, other: "Curve") -> "Curve":
        """The difference of two independent curves in the same bins; n is that of the smaller."""
        assert torch.equal(self.edges, other.edges)
        se = torch.hypot(self.se, other.se)
        return Curve(self.edges, self.mean - other.mean, se, torch.minimum(self.n, other.n))

    def over(self, scale: Tensor) -> "Curve":
        """Mean and error divided by a number for each bin, [bins]."""
        return self._replace(mean=self.mean / scale, se=self.se / scale)


def _bins(timesteps: Tensor, edges: Tensor) -> Tensor:
    """The bin of each timestep."""
    return torch.bucketize(timesteps, edges, right=True) - 1


def bin_edges(num_steps: int, num_values: int, at_most: int = MAX_BINS) -> Tensor:
    """Bins for `num_values` values spread evenly over 1 … T-1: edges from 1 to T, int64 [bins + 1].

    They are narrow near t = 1, where divergences change fastest, and their widths grow linearly with their number;
    none is so narrow that it would hold fewer than `MIN_IN_BIN` values.
    """
    width = math.ceil(MIN_IN_BIN * (num_steps - 1) / max(num_values, 1))  # timesteps
    most = max((num_steps - 1) // width, 1)  # bins of this width
    fractions = torch.linspace(0, 1, at_most + 1, dtype=torch.float64)
    edges = 1 + width * (most * fractions**2).round().long().unique()
    edges[-1] = num_steps
    return edges


def write_curves(path: Path, curves: Mapping[str, Curve], unit: str) -> None:
    """Write a CSV with a row for each bin of each curve."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "t_from", "t_to", unit, "se", "n"])
        for name, curve in curves.items():
            columns = (curve.edges[:-1], curve.edges[1:] - 1, curve.mean, curve.se, curve.n)
            writer.writerows([name, *row] for row in zip(*(column.tolist() for column in columns), strict=True))
