"""The interface of a measure of samples: what a measure gets, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate

MAX_PARTS = 10
"""maximum number of parts in `mean_over_parts`"""
UNKNOWN = Estimate(torch.nan, torch.nan)


@dataclass(frozen=True, eq=False)  # hashed by identity: a function of image sets can cache its results
class ImageSet:
    """Images and what the feature network says of them, in an order that carries no information."""

    images: Tensor
    """uint8 [N, C, H, W]"""
    features: Tensor
    """float64 [N, D]"""
    logits: Tensor | None
    """of the classes, [N, classes]; None if the features do not classify"""
    labels: Tensor | None = None
    """the classes that samples were asked for, int64 [N]; None if they were drawn without labels"""

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int) -> "ImageSet":
        logits, labels = (None if of is None else of[:n] for of in (self.logits, self.labels))
        return ImageSet(self.images[:n], self.features[:n], logits, labels)


class Nearest(NamedTuple):
    """The nearest training image of each of N images."""

    distances: Tensor
    """Euclidean, float64 [N]"""
    indices: Tensor
    """int64 [N]"""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images. The generator may have learnt from `train`, and has never seen `test`."""

    train: ImageSet
    test: ImageSet
    train_subset: ImageSet
    """the first images of `train`, as many as there are samples"""
    test_subset: ImageSet
    """the first images of `test`, as many as there are samples"""
    samples_nearest: dict[str, Nearest]
    """by space, "pixels" or "features": the nearest training image of each sample"""
    test_nearest: dict[str, Nearest]
    """by space: the nearest training image of each test image"""


class Comparison(NamedTuple):
    """A measure of the samples beside the same measure of real images."""

    value: Estimate
    real: Estimate = UNKNOWN
    """the floor of a distance, or the ceiling of a share. A measure that depends on the number of images uses as many
    real images as samples, or is a mean over several parts of that size. Other measures use all real images."""
    has_ratio: bool = False
    """whether value / real is shown; `real` of other measures may be 0"""

    @property
    def ratio(self) -> Estimate:
        """value / real, with the standard error that follows from both; NaN if `real` is 0."""
        (value, value_se), (real, real_se) = self.value, self.real
        if real == 0:
            return UNKNOWN
        return Estimate(value / real, ((value_se / real) ** 2 + (value * real_se / real**2) ** 2) ** 0.5)


class Measure(Protocol):
    """One number of a set of samples. `ddpm evaluate` runs the measures in `measures` of its config."""

    name: str
    """after "quality/" in metrics.json and in TensorBoard"""
    caption: str
    """in the table"""
    # A measure that needs logits also has needs_classes = True; it is left out if the features do not classify.

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison | Estimate | float:
        """Return the measure of the samples, with that of real images if there is one."""


def mean_over_parts(measure: Callable[[Tensor], Estimate], rows: Tensor, n: int) -> Estimate:
    """Return the mean of a measure over at most `MAX_PARTS` disjoint parts of n real images, treated as independent.

    Args:
        rows: one row for each image, [N, …].
    """
    parts = rows.split(n)[: min(len(rows) // n, MAX_PARTS)]
    means, errors = torch.tensor([measure(part) for part in parts], dtype=torch.float64).T
    return Estimate(means.mean().item(), errors.norm().item() / len(parts))
