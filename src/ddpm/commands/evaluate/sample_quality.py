"""The sample quality part of `ddpm evaluate`: compares images from a checkpoint or a file with real images."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor, nn

from ddpm.commands import display, from_checkpoint
from ddpm.commands.from_checkpoint import Loaded
from ddpm.commands.progress import Evaluations
from ddpm.config import build, conf_dir, option_name, user_path
from ddpm.data import MNIST, FashionMNIST, ImageData, MNISTMini, pictures, to_model_range
from ddpm.diffusion import ClassifierFree, Guidance, Sampler
from ddpm.errors import UserError
from ddpm.metrics import plots
from ddpm.metrics.classes import AsAsked
from ddpm.metrics.estimates import Estimate
from ddpm.metrics.features import Features, check_features
from ddpm.metrics.measures import Measure
from ddpm.metrics.quality import MIN_IMAGES, Quality, check_images, sample_quality
from ddpm.seeding import Stream, evenly_spread, seed_at
from ddpm.training.module import DDPM

NUM_SHOWN = 64


@dataclass(frozen=True)
class SampleQuality:
    """Samples, and their comparison with real images."""

    FILES: ClassVar = (
        "samples.png: the first of the samples",
        "closest.png: those nearest to a training image",
        "classes.png: of which classes they are, if the features classify",
    )

    samples: Tensor
    """uint8 [N, C, H, W]"""
    train: Tensor
    """the training images, uint8 [M, C, H, W]"""
    quality: Quality
    origin: dict[str, Any]
    """how the samples were made"""

    def metrics(self) -> dict[str, float]:
        """Return the measures and their standard errors as `quality/<name>` …"""
        return {f"quality/{name}": value for name, value in self.quality.numbers().items()}

    def facts(self) -> dict[str, Any]:
        """Return how the samples were made, and how many were compared."""
        return self.origin | {"samples_judged": self.quality.n}

    def write(self, directory: Path) -> None:
        """Write samples.png, closest.png and classes.png."""
        pictures.image_grid(to_model_range(self.samples[:NUM_SHOWN])).save(directory / "samples.png")
        pairs = {
            space: (
                to_model_range(self.samples[near.samples]),
                to_model_range(self.train[near.train]),
                near.distances,
            )
            for space, near in self.quality.pairs.items()
        }
        thresholds = {space: near.threshold for space, near in self.quality.pairs.items()}
        plots.closest_pairs(pairs, thresholds).savefig(directory / "closest.png")
        if (shares := self.quality.class_shares) is not None and (real := self.quality.real_class_shares) is not None:
            plots.class_shares(shares, real).savefig(directory / "classes.png")

    def tables(self) -> Iterator[Table]:
        """Yield the one table of the measures."""
        quality = self.quality
        title = (
            f"Sample quality: {quality.n} samples beside as many real images "
            f"({quality.num_train} training, {quality.num_test} test images)"
        )
        shown = display.table(title, "measure", "samples ± se", "real ± se", "ratio")
        for name, measured in quality.measures.items():
            ratio = f"{measured.ratio.mean:.2f}" if measured.has_ratio else ""
            shown.add_row(quality.captions[name], _shown(measured.value), _shown(measured.real), ratio)
        yield shown


def _shown(value: Estimate) -> str:
    return "–" if math.isnan(value.mean) else f"{value.mean:.4g} ± {value.se:.2g}"


FEATURES = {MNIST: "digits", MNISTMini: "digits", FashionMNIST: "fashion"}
"""the option of `features` for a data set, if the config names none"""
NO_FEATURES = "no features are known for these data; set features=inception or features=dinov2, or your own."


def build_features(cfg: DictConfig, data: ImageData) -> tuple[str, Features] | None:
    """Return the features in which samples of a model of `data` are judged, and their name with their settings.

    None if no features are asked for or known.

    Raises:
        UserError: too few samples, or features that cannot be computed of images of this shape.
    """
    if cfg.samples is None and cfg.num_samples == 0:
        return None
    if cfg.samples is None and cfg.num_samples < MIN_IMAGES:
        raise UserError(f"num_samples={cfg.num_samples}: at least {MIN_IMAGES}, or 0 to leave sample quality out.")
    node = cfg.features
    if node is None and type(data) in FEATURES:
        node = OmegaConf.load(conf_dir() / "features" / f"{FEATURES[type(data)]}.yaml")
    if node is None:
        display.console.print(f"Sample quality is left out: {NO_FEATURES}")
        return None
    features: Features = build(node)
    if isinstance(features, nn.Module):
        features.eval()  # no dropout, and no statistics of a batch
    name = option_name(node._target_)
    try:
        check_features(features, data.image_shape)
    except ValueError as error:
        raise UserError(f"features={name}: {error}") from error
    own = [f"{key}={value}" for key, value in node.items() if key != "_target_" and value is not None]
    return " ".join([name, *own]), features


def check_data(data: ImageData) -> None:
    """Raise a UserError if the data has too few real images to compare samples with."""
    for name in ("train", "test"):
        try:
            check_images(f"{name} images", data.split(name).images, data.image_shape)
        except ValueError as error:
            raise UserError(str(error)) from error


def build_measures(nodes: Mapping[str, Any] | None) -> list[Measure]:
    """Return the measures of `measures` in the config; a node that is null is left out.

    Raises:
        UserError: an object is no measure, or two measures have one name.
    """
    measures: dict[str, Measure] = {}
    for key, node in (nodes or {}).items():
        if node is None:
            continue
        measure = build(node)
        name, caption = (getattr(measure, attribute, None) for attribute in ("name", "caption"))
        if not (callable(measure) and isinstance(name, str) and isinstance(caption, str)):
            raise UserError(f"measures.{key} is no measure: its class needs a name, a caption and __call__.")
        if name in measures or name == AsAsked.name:
            raise UserError(f"measures.{key} and another measure have the same name, {name}.")
        measures[name] = measure
    return list(measures.values())


class Drawn(NamedTuple):
    """Samples, and how they were made."""

    samples: Tensor
    """uint8 [N, C, H, W]"""
    origin: dict[str, Any]
    labels: Tensor | None = None
    """the classes that were asked for, int64 [N]"""


def draw_labels(cfg: DictConfig, data: ImageData, model: DDPM) -> list[int] | None:
    """Return labels for the samples, with the shares of the training set; None if the model is unconditional.

    Label i depends on (seed, i) only.
    """
    labels = from_checkpoint.labels_of(data, "train", model)
    if labels is None:
        return None
    shift = seed_at(Stream.LABELS, cfg.seed) / 2**64
    position = evenly_spread(torch.arange(cfg.num_samples), shift)
    return labels.sort().values[(position * len(labels)).long()].tolist() or None


def draw(cfg: DictConfig, loaded: Loaded, sampler: Sampler, guidance: Guidance, labels: Sequence[int] | None) -> Drawn:
    """Draw `num_samples` images."""
    steps = loaded.model.check_sampler(sampler)
    started = time.perf_counter()
    with Evaluations(loaded.fabric.world_size) as progress:
        advance = progress.part(f"samples, {steps} steps", cfg.num_samples * steps)
        images = from_checkpoint.sample(cfg, loaded, sampler, advance, labels, guidance)
    seconds = time.perf_counter() - started
    origin = {
        "sampler": option_name(cfg.sampler._target_),
        "network_evaluations": guidance.evaluations(sampler.timesteps(loaded.model.diffusion)),
        "spacing": sampler.spacing,
        "num_samples": cfg.num_samples,
        "seconds_per_1000_images": 1000 * seconds / cfg.num_samples,
    }
    if labels is not None or not isinstance(guidance, ClassifierFree):
        by = f" by {cfg.guidance.ckpt}" if "ckpt" in cfg.guidance else ""
        origin |= {"guidance": option_name(cfg.guidance._target_) + by, "guidance_scale": guidance.scale}
        origin |= {"guidance_interval": guidance.interval, "sampler_steps": steps}
    return Drawn(images, origin, None if labels is None else torch.tensor(labels))


def judge(
    cfg: DictConfig,
    drawn: Drawn,
    data: ImageData,
    named_features: tuple[str, Features],
    measures: Sequence[Measure],
    device: torch.device,
) -> SampleQuality:
    """Compare samples with the training and test images of `data`. A feature network computes on `device`.

    Raises:
        UserError: the samples have another shape, or are too few.
    """
    train, test = (data.split(name).images for name in ("train", "test"))
    name, features = named_features
    if isinstance(features, nn.Module):
        features.to(device)
    if drawn.labels is not None:
        measures = [*measures, AsAsked(data.num_classes)]
    cache = user_path(cfg.paths.outputs) / "evaluate" / ".real_images"
    with display.console.status("sample quality") as status:

        def show(stage: str) -> None:
            status.update(f"sample quality: {stage}")

        try:
            quality = sample_quality(drawn.samples, train, test, features, measures, cache, show, drawn.labels)
        except ValueError as error:
            raise UserError(str(error)) from error
    left_out = [measure.caption for measure in measures if measure.name not in quality.measures]
    if left_out:
        display.console.print(f"Left out, because these features do not classify: {', '.join(left_out)}.")
    return SampleQuality(drawn.samples, train, quality, drawn.origin | {"features": name})
