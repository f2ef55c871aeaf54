"""Which digits the samples are, and how sure the classifier is of it."""

import torch
from torch import Tensor

from ddpm.metrics.digit_classifier import NUM_CLASSES
from ddpm.metrics.estimates import Estimate

UNSURE = 0.9
"""a digit whose most probable class has less is unsure"""


def class_shares(logits: Tensor) -> Tensor:
    """The share of each most probable class among logits [N, 10]; float64, [10]."""
    return torch.bincount(logits.argmax(dim=1), minlength=NUM_CLASSES).double() / len(logits)


def total_variation(logits: Tensor, reference_shares: Tensor) -> Estimate:
    """Half the sum of |p - q| over the classes: the share of the samples that would have to be another digit.

    Of N samples that are drawn from q itself it is about 1.2/√N, not 0. Its error is by the delta method.

    Args:
        logits: of the samples, [N, 10].
        reference_shares: q, [10].
    """
    difference = class_shares(logits) - reference_shares
    influence = difference.sign()[logits.argmax(dim=1)] / 2
    return Estimate(difference.abs().sum().item() / 2, Estimate.of(influence).se)


def confidence(logits: Tensor) -> tuple[Estimate, Estimate]:
    """The mean probability of the most probable class, and the share of digits where it is below 0.9."""
    top = logits.double().softmax(dim=1).amax(dim=1)
    return Estimate.of(top), Estimate.of((top < UNSURE).double())
