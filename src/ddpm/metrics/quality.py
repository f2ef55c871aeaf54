"""Sample quality: every measure of a set of digits, each beside the same measure of as many held-out real ones."""

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
"""of n real images each, over which a floor that depends on n is a mean"""
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
"""what the measures are, in the order of a table"""


class Measure(NamedTuple):
    value: Estimate
    """of the samples"""
    real: Estimate
    """of held-out real images, the floor of a distance or the ceiling of a share: of n of them, or as a mean over
    several n, where the measure depends on the number; of all where it does not"""

    @property
    def ratio(self) -> Estimate:
        """value / real, with the error that follows from both; NaN where `real` is 0."""
        (value, value_se), (real, real_se) = self.value, self.real
        if real == 0:
            return Estimate(torch.nan, torch.nan)
        return Estimate(value / real, ((value_se / real) ** 2 + (value * real_se / real**2) ** 2) ** 0.5)


class Pairs(NamedTuple):
    """The samples that are nearest to a training image, nearest first."""

    samples: Tensor
    """their indices, int64 [k]"""
    train: Tensor
    """indices of the training images, int64 [k]"""
    distances: Tensor
    """float64 [k]"""
    threshold: float
    """below it a sample counts as a near-copy"""


@dataclass(frozen=True)
class Quality:
    n: int
    """samples that were judged: no more than there are test or training images, so that the floor has as many"""
    num_samples: int
    num_train: int
    num_test: int
    measures: dict[str, Measure]
    """by the names of `CAPTIONS`"""
    class_shares: Tensor
    """of the n samples, float64 [10]"""
    real_class_shares: Tensor
    """of the training images, as the classifier sees them, float64 [10]"""
    pairs: dict[str, Pairs]
    """"pixels", with distances between images in [0, 1], and "features\""""

    def numbers(self) -> dict[str, float]:
        """All of it flat: NAME, NAME_se, NAME_real, NAME_real_se, and NAME_ratio, NAME_ratio_se of the Fréchet
        distances alone: elsewhere `real` may be 0."""
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
    """Judge samples of grey digits by the pinned `DigitClassifier`, on the CPU.

    Nothing depends on the order of the images of a set: all are first sorted by their SHA-256, which is as good as
    at random and the same every time; what takes a part of a set takes the first ones, what needs groups cuts it.

    Args:
        samples, train, test: uint8 [N, 1, 28, 28]; `train` is what the generator may have learnt from, `test` what
            it has never seen.
        cache_dir: keeps what is computed of the real images.
        on_stage: called with each of `STAGES` as it begins.

    Raises:
        ValueError: images of another kind, or fewer than 100 of one.
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
    """The mean of a measure over disjoint parts of n real images, at most ten, as independent."""
    parts = images.split(n)[: min(len(images) // n, MAX_PARTS)]
    means, errors = torch.tensor([measure(part, reference) for part in parts], dtype=torch.float64).T
    return Estimate(means.mean().item(), errors.norm().item() / len(parts))


def _by_digest(images: Tensor) -> Tensor:
    """The indices that sort images by the SHA-256 of their pixels, int64 [N]."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images.numpy()]
    return torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))


def _pixels(images: Tensor) -> Tensor:
    """float32 [N, C·H·W] in [0, 1]"""
    return images.flatten(1).float() / 255


def _network() -> tuple[str, str]:
    """What features depend on besides the images."""
    return read_card()["sha256"], str(VERSION)


def _real_activations(network: DigitClassifier, images: Tensor, cache_dir: Path | None) -> Activations:
    def make() -> dict[str, Tensor]:
        return activations(network, images)._asdict()

    return Activations(**cached(cache_dir, "activations", (*_network(), digest(images)), make))


def _held_out_nearest(
    train: Tensor, test: Tensor, train_features: Tensor, test_features: Tensor, cache_dir: Path | None
) -> dict[str, Nearest]:
    """The training image nearest to each test image, in pixels and in features."""

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
