"""The sample quality part of `ddpm evaluate`: digits drawn from a checkpoint, or from a file, beside real ones."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from ddpm.commands import display, from_checkpoint
from ddpm.commands.evaluations import Evaluations
from ddpm.commands.from_checkpoint import Loaded
from ddpm.config import build, option_name, user_path
from ddpm.data import MNIST, ImageData, MNISTMini, pictures, to_model_range, to_uint8
from ddpm.diffusion import Sampler
from ddpm.errors import UserError
from ddpm.metrics import plots
from ddpm.metrics.quality import CAPTIONS, Quality, sample_quality

NUM_SHOWN = 64


class SampleQuality(NamedTuple):
    """Samples, and how they compare."""

    samples: Tensor
    """uint8 [N, 1, 28, 28]"""
    train: Tensor
    """what the generator may have learnt from, uint8 [M, 1, 28, 28]"""
    quality: Quality
    origin: dict[str, Any]
    """how the samples were made"""

    def metrics(self) -> dict[str, float]:
        return {f"quality/{name}": value for name, value in self.quality.numbers().items()}

    def facts(self) -> dict[str, Any]:
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
        plots.class_shares(self.quality.class_shares, self.quality.real_class_shares).savefig(directory / "classes.png")

    def table(self) -> Table:
        quality = self.quality
        shown = Table(
            "measure", "samples ± se", "real ± se", "ratio",
            title=f"Sample quality: {quality.n} samples beside as many real digits "
            f"({quality.num_train} training, {quality.num_test} test images)",
            title_justify="left",
        )  # fmt: skip
        for column in shown.columns[1:]:
            column.justify = "right"
        for name, (value, real) in quality.measures.items():
            ratio = f"{quality.measures[name].ratio.mean:.2f}" if name.startswith("fd_") else ""
            cells = (f"{estimate.mean:.4g} ± {estimate.se:.2g}" for estimate in (value, real))
            shown.add_row(CAPTIONS[name], *cells, ratio)
        return shown


def knows(data: ImageData) -> bool:
    """Whether the classifier behind the measures was trained on such images."""
    return type(data) in (MNIST, MNISTMini)  # not Fashion-MNIST, which is a kind of MNIST here


class Drawn(NamedTuple):
    """Samples, and how they were made."""

    samples: Tensor
    """uint8 [N, 1, 28, 28]"""
    origin: dict[str, Any]


def draw(cfg: DictConfig, loaded: Loaded) -> Drawn:
    """Draw `num_samples` images by `sampler`.

    Raises:
        UserError: a sampler that the chain cannot take.
    """
    sampler: Sampler = build(cfg.sampler, Sampler)
    steps = loaded.model.check_sampler(sampler)
    started = time.perf_counter()
    with Evaluations(loaded.fabric.world_size) as progress:
        advance = progress.part(f"samples, {steps} steps", cfg.num_samples * steps)
        images = from_checkpoint.sample(cfg, loaded, sampler, advance)
    seconds = time.perf_counter() - started
    origin = {
        "sampler": option_name(cfg.sampler._target_),
        "network_evaluations": steps,
        "spacing": sampler.spacing,
        "num_samples": cfg.num_samples,
        "seconds_per_1000_images": 1000 * seconds / cfg.num_samples,
    }
    return Drawn(to_uint8(images), origin)


def judge(cfg: DictConfig, drawn: Drawn, data: ImageData) -> SampleQuality:
    """Judge samples by what `data` holds.

    Raises:
        UserError: samples of another kind, or too few.
    """
    train, test = (data.split(name).images for name in ("train", "test"))
    cache = user_path(cfg.paths.outputs) / "evaluate" / ".real_digits"
    with display.console.status("sample quality") as status:
        try:
            quality = sample_quality(
                drawn.samples, train, test, cache, lambda stage: status.update(f"sample quality: {stage}")
            )
        except ValueError as error:
            raise UserError(str(error)) from error
    return SampleQuality(drawn.samples, train, quality, drawn.origin)
