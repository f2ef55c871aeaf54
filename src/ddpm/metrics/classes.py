"""Distribution of the samples over the classes, and confidence of the classifier."""

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate
from ddpm.metrics.measures import UNKNOWN, Comparison, ImageSet, Reference, mean_over_parts

UNSURE = 0.9
"""the classifier is unsure of an image if its most probable class has a lower probability"""


class ClassShares:
    """How far the class shares are from those of the training images. The floor is the distance of test images."""

    name = "class_tv"
    needs_classes = True
    caption = "class shares: total variation from the training images"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        assert samples.logits is not None
        assert reference.train.logits is not None
        assert reference.test.logits is not None
        shares = class_shares(reference.train.logits)
        floor = mean_over_parts(lambda part: total_variation(part, shares), reference.test.logits, len(samples))
        return Comparison(total_variation(samples.logits, shares), floor)


class Confidence:
    """The classifier's mean confidence."""

    name = "confidence"
    needs_classes = True
    caption = "classifier's confidence"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        assert samples.logits is not None
        assert reference.test.logits is not None
        return Comparison(confidence(samples.logits)[0], confidence(reference.test.logits)[0])


class Unsure:
    """The share of images of which the classifier is unsure."""

    name = "unsure"
    needs_classes = True
    caption = f"share with confidence below {UNSURE}"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        assert samples.logits is not None
        assert reference.test.logits is not None
        return Comparison(confidence(samples.logits)[1], confidence(reference.test.logits)[1])


class AsAsked:
    """The share of samples that the classifier sees as the class that they were asked for.

    Args:
        num_classes: number of classes of the labels. If the classifier has another number, the share is not known.
    """

    name = "as_asked"
    needs_classes = True
    caption = "label accuracy"

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        assert samples.logits is not None
        assert samples.labels is not None
        if samples.logits.shape[1] != self.num_classes:
            return Comparison(UNKNOWN)
        return Comparison(Estimate.of((samples.logits.argmax(dim=1) == samples.labels).double()))


def class_shares(logits: Tensor) -> Tensor:
    """Return how often each class is the most probable one in logits [N, K], as shares, float64 [K]."""
    return torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1]).double() / len(logits)


def total_variation(logits: Tensor, reference_shares: Tensor) -> Estimate:
    """Return the total variation between class shares p and q, half the sum of |p - q| over the classes.

    It is the share of the samples that would have to be of another class. For N samples drawn from q itself it is about
    1.2/√N with ten classes, not 0. The standard error comes from the delta method.

    Args:
        logits: logits of the samples, [N, K]; they give p.
        reference_shares: q, [K].
    """
    difference = class_shares(logits) - reference_shares
    influence = difference.sign()[logits.argmax(dim=1)] / 2
    return Estimate(difference.abs().sum().item() / 2, Estimate.of(influence).se)


def confidence(logits: Tensor) -> tuple[Estimate, Estimate]:
    """Return the mean probability of the most probable class, and the share of images where it is below 0.9."""
    top = logits.double().softmax(dim=1).amax(dim=1)
    return Estimate.of(top), Estimate.of((top < UNSURE).double())
