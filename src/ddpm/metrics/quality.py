"""Sample quality: all measures of a set of images, and the same measures of equally many held-out real images."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.metrics.cache import cached, digest
from ddpm.metrics.classes import class_shares
from ddpm.metrics.digit_classifier import Activations
from ddpm.metrics.estimates import Estimate
from ddpm.metrics.features import Features, features_of
from ddpm.metrics.measures import UNKNOWN, Comparison, ImageSet, Measure, Nearest, Reference
from ddpm.metrics.memorisation import SPACES, copy_threshold, nearest

MIN_IMAGES = 100
NUM_PAIRS = 8
NUM_PROBES = 16


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
    measures: dict[str, Comparison]
    """by name"""
    captions: dict[str, str]
    """of the measures"""
    class_shares: Tensor | None
    """class shares of the n samples, float64 [classes]; None if the features do not classify"""
    real_class_shares: Tensor | None
    """class shares of the training images according to the features, float64 [classes]"""
    pairs: dict[str, Pairs]
    """for "pixels", with distances between images in [0, 1], and for "features\""""

    def numbers(self) -> dict[str, float]:
        """Return all numbers in one flat dict: counts, thresholds, and NAME, NAME_se, NAME_real and NAME_real_se.

        Measures with a ratio also have NAME_ratio and NAME_ratio_se. Numbers that are not known are NaN. The class
        shares are class_share_0 …, and those of the training images class_share_0_real ….
        """
        flat: dict[str, float] = {name: getattr(self, name) for name in ("n", "num_samples", "num_train", "num_test")}
        for name, measure in self.measures.items():
            parts = {name: measure.value, f"{name}_real": measure.real}
            if measure.has_ratio:
                parts[f"{name}_ratio"] = measure.ratio
            for key, estimate in parts.items():
                flat |= {key: estimate.mean, f"{key}_se": estimate.se}
        flat |= {f"{space.removesuffix('s')}_copies_threshold": pairs.threshold for space, pairs in self.pairs.items()}
        for end, shares in {"": self.class_shares, "_real": self.real_class_shares}.items():
            flat |= {
                f"class_share_{i}{end}": share for i, share in enumerate([] if shares is None else shares.tolist())
            }
        return flat


def sample_quality(
    samples: Tensor,
    train: Tensor,
    test: Tensor,
    features: Features,
    measures: Sequence[Measure],
    cache_dir: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    labels: Tensor | None = None,
) -> Quality:
    """Return measures of samples in the given features. Only a feature network computes on another device than the CPU.

    The result does not depend on the order of the images in a set. Each set is first sorted by the SHA-256 of its
    images: this order is as good as random, and always the same. A measure of a part of a set uses the first images,
    and a measure with groups cuts the sorted set.

    Args:
        samples, train, test: uint8 [N, C, H, W]. The generator may have learnt from `train`, and has never seen
            `test`.
        measures: those that need classes are left out if the features do not classify.
        cache_dir: folder that stores the results for the real images; None stores nothing.
        on_stage: called with a caption of the next part of the work.
        labels: the classes that the samples were asked for, int64 [N].

    Raises:
        ValueError: images of another shape or dtype, or fewer than 100 images in a set.
        UserError: `cache_dir` cannot be made.
    """
    for name, images in {"samples": samples, "training images": train, "test images": test}.items():
        check_images(name, images, tuple(train.shape[1:]))
    n = min(len(samples), len(train), len(test))
    order, train_order, test_order = (_by_digest(images) for images in (samples, train, test))
    order = order[:n]
    chosen, train, test = samples[order], train[train_order], test[test_order]

    on_stage("features of the real images")
    train_set, test_set = (_real_image_set(features, images, cache_dir) for images in (train, test))
    test_nearest = _test_nearest(train_set, test_set, cache_dir)
    on_stage("features of the samples")
    asked = None if labels is None else labels[order]
    sample_set = replace(_image_set(chosen, features_of(features, chosen)), labels=asked)
    on_stage("distances to the training images")
    samples_nearest = _nearest(sample_set, train_set)
    reference = Reference(train_set, test_set, train_set.first(n), test_set.first(n), samples_nearest, test_nearest)

    if sample_set.logits is None:
        measures = [measure for measure in measures if not getattr(measure, "needs_classes", False)]
    comparisons = {}
    for measure in measures:
        on_stage(measure.caption)
        comparisons[measure.name] = _measured(measure, sample_set, reference)
    pairs = {}
    for space, near in samples_nearest.items():
        closest = near.distances.argsort(stable=True)[:NUM_PAIRS]
        pairs[space] = Pairs(
            order[closest],
            train_order[near.indices[closest]],
            near.distances[closest],
            copy_threshold(test_nearest[space].distances).item(),
        )
    shares, real_shares = (
        None if images.logits is None else class_shares(images.logits) for images in (sample_set, train_set)
    )
    captions = {measure.name: measure.caption for measure in measures}
    return Quality(n, len(samples), len(train), len(test), comparisons, captions, shares, real_shares, pairs)


def _measured(measure: Measure, samples: ImageSet, reference: Reference) -> Comparison:
    try:
        result = measure(samples, reference)
        if isinstance(result, Comparison):
            return result
        return Comparison(result if isinstance(result, Estimate) else Estimate(float(result), UNKNOWN.se))
    except Exception as error:  # a measure of the user's own may raise any error, or return anything
        raise ValueError(f"the measure {measure.name} failed: {type(error).__name__}: {error}") from error


def check_images(name: str, images: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError if images cannot be compared: another shape or dtype, or fewer than 100 images."""
    if images.dtype != torch.uint8 or images.shape[1:] != shape:
        raise ValueError(
            f"the {name} are {images.dtype} {list(images.shape)}: sample quality needs images like those of the data, "
            f"torch.uint8 {['N', *shape]}.".replace("'", "")
        )
    if len(images) < MIN_IMAGES:
        raise ValueError(f"there are only {len(images)} {name}: sample quality needs at least {MIN_IMAGES}.")


def _by_digest(images: Tensor) -> Tensor:
    """Return the indices that sort images by the SHA-256 of their pixels, int64 [N]."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images.numpy()]
    return torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))


def _real_image_set(features: Features, images: Tensor, cache_dir: Path | None) -> ImageSet:
    # The features of a few of the images tell one network from another: its code and its weights.
    probe = digest(features_of(features, images[:NUM_PROBES]).features)

    def make() -> dict[str, Tensor]:
        outputs = features_of(features, images)._asdict()
        return {name: tensor for name, tensor in outputs.items() if tensor is not None}

    tensors = cached(cache_dir, "features", (probe, digest(images)), make)
    return _image_set(images, Activations(tensors["features"], tensors.get("logits")))


def _image_set(images: Tensor, activations: Activations) -> ImageSet:
    return ImageSet(images, activations.features.double(), activations.logits)


def _nearest(images: ImageSet, train: ImageSet) -> dict[str, Nearest]:
    """Return the nearest training image of each image, by space."""
    of_space = (images.images, train.images), (images.features, train.features)
    return {space: nearest(*points) for space, points in zip(SPACES, of_space, strict=True)}


def _test_nearest(train: ImageSet, test: ImageSet, cache_dir: Path | None) -> dict[str, Nearest]:
    """Return the nearest training image of each test image, by space."""

    def make() -> dict[str, Tensor]:
        by_space = _nearest(test, train).items()
        return {f"{space}_{name}": tensor for space, near in by_space for name, tensor in near._asdict().items()}

    depends_on = train.images, train.features, test.images
    tensors = cached(cache_dir, "nearest", tuple(map(digest, depends_on)), make)
    return {space: Nearest(tensors[f"{space}_distances"], tensors[f"{space}_indices"]) for space in SPACES}
