"""Sample quality: all measures of a set of digits, and the same measures of equally many held-out real digits."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.metrics.cache import cached, digest
from ddpm.metrics.classes import class_shares, confidence, total_variation
from ddpm.metrics.digit_classifier import IMAGE_SHAPE, VERSION, Activations, DigitClassifier, activations, read_card
from ddpm.metrics.estimates import Estimate
from ddpm.metrics.frechet import frechet_distance
from ddpm.metrics.kernel import kernel_distance
from ddpm.metrics.manifold import manifold_measures
from ddpm.metrics.memorisation import Nearest, memorisation, nearest

MIN_IMAGES = 100
NUM_PAIRS = 8
MAX_PARTS = 10
"""maximum number of parts, of n real images each; a floor that depends on n is a mean over the parts"""
STAGES = ("training images", "test images", "samples", "distances", "neighbours", "memorisation")

CAPTIONS = {
    "fd_train": "Fréchet distance to the training images",
    "fd_test": "Fréchet distance to the test images",
    "kid": "kernel distance (KID) to the training images",
    "precision": "precision: samples that look real",
    "recall": "recall: real images that the samples reach",
    "density": "density of the real images around samples",
    "coverage": "coverage: real images with samples near",
    "class_tv": "class shares: total variation from the training images",
    "confidence": "classifier's confidence",
    "unsure": "share with confidence below 0.9",
    "pixel_distance": "pixels: distance to the nearest training image",
    "pixel_copies": "pixels: share of near-copies",
    "feature_distance": "features: distance to the nearest training image",
    "feature_copies": "features: share of near-copies",
}
"""descriptions of the measures, in the order of the table"""


class Measure(NamedTuple):
    value: Estimate
    """measured on the samples"""
    real: Estimate
    """measured on held-out real images: the floor of a distance, or the ceiling of a share. A measure that depends on
    the number of images uses n of them, or is a mean over several parts of n images. Other measures use all."""

    @property
    def ratio(self) -> Estimate:
        """value / real, with the standard error that follows from both; NaN if `real` is 0."""
        (value, value_se), (real, real_se) = self.value, self.real
        if real == 0:
            return Estimate(torch.nan, torch.nan)
        return Estimate(value / real, ((value_se / real) ** 2 + (value * real_se / real**2) ** 2) ** 0.5)


class Pairs(NamedTuple):
    """The k samples with the smallest distance to a training image, nearest first."""

    samples: Tensor
    """indices of the samples, int64 [k]"""
    train: Tensor
    """indices of the training images, int64 [k]"""
    distances: Tensor
    """float64 [k]"""
    threshold: float
    """a sample with a smaller distance is a near-copy"""


@dataclass(frozen=True)
class Quality:
    n: int
    """number of judged samples; at most the number of test or training images, so that the floor uses equally many"""
    num_samples: int
    num_train: int
    num_test: int
    measures: dict[str, Measure]
    """by the keys of `CAPTIONS`"""
    class_shares: Tensor
    """class shares of the n samples, float64 [10]"""
    real_class_shares: Tensor
    """class shares of the training images according to the classifier, float64 [10]"""
    pairs: dict[str, Pairs]
    """for "pixels", with distances between images in [0, 1], and for "features\""""

    def numbers(self) -> dict[str, float]:
        """Returns all numbers in one flat dict: NAME, NAME_se, NAME_real and NAME_real_se.

        Only the Fréchet distances have NAME_ratio and NAME_ratio_se: `real` of other measures may be 0.
        """
        flat: dict[str, float] = {name: getattr(self, name) for name in ("n", "num_samples", "num_train", "num_test")}
        for name, measure in self.measures.items():
            parts = {name: measure.value, f"{name}_real": measure.real}
            if name.startswith("fd_"):
                parts[f"{name}_ratio"] = measure.ratio
            for key, estimate in parts.items():
                flat |= {key: estimate.mean, f"{key}_se": estimate.se}
        flat |= {f"{space.removesuffix('s')}_copies_threshold": pairs.threshold for space, pairs in self.pairs.items()}
        return flat | {f"class_share_{digit}": share for digit, share in enumerate(self.class_shares.tolist())}


def sample_quality(
    samples: Tensor,
    train: Tensor,
    test: Tensor,
    cache_dir: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Quality:
    """Returns all measures of samples of grey digits, by the pinned `DigitClassifier` on the CPU.

    The result does not depend on the order of the images in a set. Each set is first sorted by the SHA-256 of its
    images: this order is as good as random, and always the same. A measure of a part of a set uses the first images,
    and a measure with groups cuts the sorted set.

    Args:
        samples, train, test: uint8 [N, 1, 28, 28]. The generator may have learnt from `train`, and has never seen
            `test`.
        cache_dir: folder that stores the results for the real images; None stores nothing.
        on_stage: called with the name of each of `STAGES` when it begins.

    Raises:
        ValueError: images of another shape or dtype, or fewer than 100 images in a set.
        UserError: `cache_dir` cannot be made.
    """
    for name, images in {"samples": samples, "training images": train, "test images": test}.items():
        if images.dtype != torch.uint8 or images.shape[1:] != IMAGE_SHAPE or len(images) < MIN_IMAGES:
            raise ValueError(
                f"the {name} are {images.dtype} {list(images.shape)}: sample quality is measured on grey 28×28 digits, "
                f"torch.uint8 [N, 1, 28, 28], with at least {MIN_IMAGES} of them."
            )
    n = min(len(samples), len(train), len(test))
    order, train_order, test_order = (_by_digest(images) for images in (samples, train, test))
    order = order[:n]
    chosen, train, test = samples[order], train[train_order], test[test_order]
    network = DigitClassifier.pinned()

    on_stage("training images")
    of_train = _real_activations(network, train, cache_dir)
    on_stage("test images")
    of_test = _real_activations(network, test, cache_dir)
    held_out = _held_out_nearest(train, test, of_train.features, of_test.features, cache_dir)
    on_stage("samples")
    of_samples = activations(network, chosen)
    features, real, test_features = (part.features.double() for part in (of_samples, of_train, of_test))

    on_stage("distances")
    shares, real_shares = class_shares(of_samples.logits), class_shares(of_train.logits)
    measures = {
        "fd_train": Measure(frechet_distance(features, real), _over_parts(frechet_distance, test_features, n, real)),
        "fd_test": Measure(
            frechet_distance(features, test_features), _over_parts(frechet_distance, real, n, test_features)
        ),
        "kid": Measure(kernel_distance(features, real[:n]), kernel_distance(test_features[:n], real[:n])),
        "class_tv": Measure(
            total_variation(of_samples.logits, real_shares),
            _over_parts(total_variation, of_test.logits, n, real_shares),
        ),
    }
    both = zip(confidence(of_samples.logits), confidence(of_test.logits), strict=True)
    measures |= {name: Measure(*pair) for name, pair in zip(("confidence", "unsure"), both, strict=True)}

    on_stage("neighbours")
    ceilings = manifold_measures(test_features[:n], real[:n])
    for name, estimate in manifold_measures(features, real[:n]).items():
        measures[name] = Measure(estimate, ceilings[name])

    on_stage("memorisation")
    found = {"pixels": nearest(_pixels(chosen), _pixels(train)), "features": nearest(features, real)}
    pairs = {}
    for space, near in found.items():
        judged = memorisation(near.distances, held_out[space].distances)
        name = space.removesuffix("s")
        measures[f"{name}_distance"] = Measure(judged.distance, judged.distance_held_out)
        measures[f"{name}_copies"] = Measure(judged.copies, judged.copies_held_out)
        closest = near.distances.argsort(stable=True)[:NUM_PAIRS]
        pairs[space] = Pairs(
            order[closest], train_order[near.indices[closest]], near.distances[closest], judged.threshold
        )
    measures = {name: measures[name] for name in CAPTIONS}
    return Quality(n, len(samples), len(train), len(test), measures, shares, real_shares, pairs)


def _over_parts(measure: Callable[[Tensor, Tensor], Estimate], images: Tensor, n: int, reference: Tensor) -> Estimate:
    """Returns the mean of a measure over at most ten disjoint parts of n real images, treated as independent."""
    parts = images.split(n)[: min(len(images) // n, MAX_PARTS)]
    means, errors = torch.tensor([measure(part, reference) for part in parts], dtype=torch.float64).T
    return Estimate(means.mean().item(), errors.norm().item() / len(parts))


def _by_digest(images: Tensor) -> Tensor:
    """Returns the indices that sort images by the SHA-256 of their pixels, int64 [N]."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images.numpy()]
    return torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))


def _pixels(images: Tensor) -> Tensor:
    """Returns the pixels of uint8 images as float32 [N, C·H·W] in [0, 1]."""
    return images.flatten(1).float() / 255


def _network() -> tuple[str, str]:
    """Returns everything besides the images that changes the features."""
    return read_card()["sha256"], str(VERSION)


def _real_activations(network: DigitClassifier, images: Tensor, cache_dir: Path | None) -> Activations:
    def make() -> dict[str, Tensor]:
        return activations(network, images)._asdict()

    return Activations(**cached(cache_dir, "activations", (*_network(), digest(images)), make))


def _held_out_nearest(
    train: Tensor, test: Tensor, train_features: Tensor, test_features: Tensor, cache_dir: Path | None
) -> dict[str, Nearest]:
    """Returns the nearest training image of each test image, in pixels and in features."""

    def make() -> dict[str, Tensor]:
        found = {
            "pixels": nearest(_pixels(test), _pixels(train)),
            "features": nearest(test_features.double(), train_features.double()),
        }
        return {f"{space}_{name}": tensor for space, near in found.items() for name, tensor in near._asdict().items()}

    tensors = cached(cache_dir, "nearest", (*_network(), digest(train), digest(test)), make)
    return {
        space: Nearest(tensors[f"{space}_distances"], tensors[f"{space}_indices"]) for space in ("pixels", "features")
    }
