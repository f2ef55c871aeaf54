"""The likelihood part of `ddpm evaluate`: the bound on test and training images, and the optimal denoiser's bound."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from ddpm.commands import display
from ddpm.commands.evaluate.optimal_variance import check_draws, spread, x0_mse_of
from ddpm.commands.from_checkpoint import Loaded, labels_of
from ddpm.commands.progress import Evaluations
from ddpm.commands.variance import with_variance
from ddpm.data import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.diffusion.empirical import EmpiricalDenoiser
from ddpm.diffusion.process import VARIANCES, Network, Variance
from ddpm.errors import UserError
from ddpm.metrics import plots
from ddpm.metrics.bound import Bound, measure_bounds
from ddpm.metrics.estimates import Curve, Estimate, bin_edges, write_curves
from ddpm.runs import identity_overrides, task_overrides
from ddpm.training.module import DDPM

NAMES = {
    "test": "model, test",
    "train": "model, train",
    "gap": "test − train",
    "empirical_test": "empirical optimal denoiser, test",
    "empirical_train": "empirical optimal denoiser, train",
}
"""the measured bounds: names in files and tables, and captions in the picture"""
GAP_BINS = 20


@dataclass(frozen=True)
class Likelihood:
    """The measured bounds."""

    FILES: ClassVar = ("kl.png, kl.csv: the KL of the steps over the timesteps",)

    variance: Variance
    """variance of the reverse steps in `bounds`"""
    under: dict[str, Bound]
    """bounds of the model on the test images, by variance"""
    bounds: dict[str, Bound]
    """bounds by the keys of `NAMES`: "test", and those that were asked for"""

    def summaries(self) -> dict[str, dict[str, Estimate]]:
        """Return the terms of each bound, and of the gap between train and test."""
        found = {name: bound.summary() for name, bound in self.bounds.items()}
        if "train" in found:
            found["gap"] = {term: value.minus(found["train"][term]) for term, value in found["test"].items()}
        return {name: found[name] for name in NAMES if name in found}

    def curves(self) -> dict[str, Curve]:
        """Return the KL of one step over the timesteps for each bound, and for the gap."""
        found = {name: bound.curve() for name, bound in self.bounds.items()}
        if "train" in found:
            test, train = self._in_shared_bins()
            found["gap"] = test.minus(train)
        return {name: found[name] for name in NAMES if name in found}

    def _in_shared_bins(self) -> tuple[Curve, Curve]:
        """Return the model's curves on test and training images, in wide bins because their difference is small."""
        test, train = self.bounds["test"], self.bounds["train"]
        edges = bin_edges(test.num_steps, min(test.timesteps.numel(), train.timesteps.numel()), GAP_BINS)
        return test.curve(edges), train.curve(edges)

    def metrics(self) -> dict[str, float]:
        """Return `bpd/total`, its terms and standard errors, and those of the other bounds as `bpd/<name>/total` …"""
        summaries = self.summaries()
        groups = {"bpd": summaries.pop("test")}
        groups |= {f"bpd/{variance}": bound.summary() for variance, bound in self.under.items()}
        groups |= {f"bpd/{name}": summary for name, summary in summaries.items()}
        return {
            key: number
            for group, summary in groups.items()
            for term, value in summary.items()
            for key, number in ((f"{group}/{term}", value.mean), (f"{group}/{term}_se", value.se))
        }

    def facts(self) -> dict[str, Any]:
        """Return the numbers of images and timesteps behind the bounds."""
        test = self.bounds["test"]
        others = {f"{name}_images": len(bound.timesteps) for name, bound in self.bounds.items() if name != "test"}
        return {
            "images": len(test.timesteps),
            "timesteps_per_image": test.timesteps.shape[1],
            "exact": test.timesteps.shape[1] == test.num_steps - 1,
            **others,
        }

    def write(self, directory: Path) -> None:
        """Write kl.csv and kl.png."""
        curves = self.curves()
        write_curves(directory / "kl.csv", curves, "kl_bits_per_dim")
        gap = curves.pop("gap", None)
        if gap is not None:
            _, train = self._in_shared_bins()
            gap = gap.over(train.mean / 100)
        named = {NAMES[name]: curve for name, curve in curves.items()}
        summary = self.bounds["test"].summary()
        figure = plots.divergences(named, gap, summary["reconstruction"].mean, summary["total"].mean)
        figure.savefig(directory / "kl.png")

    def tables(self) -> Iterator[Table]:
        """Yield the bound by variance, and if there are others, the bounds side by side."""
        by_variance = {variance: bound.summary() for variance, bound in self.under.items()}
        yield _table(
            "Variational bound on the test set, by the variance of the reverse steps",
            ["bits/dim ± se", *by_variance],
            {term: [found[term] for found in by_variance.values()] for term in next(iter(by_variance.values()))},
        )
        if len(self.bounds) > 1:
            terms = ("kl", "reconstruction", "total")
            yield _table(
                f"Test and train, at variance {self.variance}; empirical: the optimal denoiser of the training set",
                ["bits/dim ± se", *terms],
                {name: [found[term] for term in terms] for name, found in self.summaries().items()},
            )


class Settings(NamedTuple):
    """What the likelihood is measured with, checked."""

    variance: Variance
    timesteps_per_image: int
    """timesteps t ≥ 1 of the bound for each image"""
    test: Tensor
    """uint8 [N, C, H, W]"""


def check(cfg: DictConfig, model: DDPM, data: ImageData) -> Settings:
    """Return the settings of the likelihood.

    Raises:
        UserError: a number of images or timesteps is out of range.
    """
    variance = cfg.variance or model.diffusion.variance
    check_draws(cfg)
    per_image = timesteps_per_image(cfg, model.diffusion.num_steps)
    test = data.split("test").images
    return Settings(variance, per_image, test[: up_to("num_images", cfg.num_images, len(test))])


def timesteps_per_image(cfg: DictConfig, num_steps: int) -> int:
    """Return the number of timesteps t ≥ 1 of the bound for each image."""
    if num_steps == 1:
        raise UserError("the bound of a chain of one step has no timestep t ≥ 1 to measure: set num_images=0.")
    if not cfg.evaluate.exact:
        return up_to("timesteps_per_image", cfg.timesteps_per_image, num_steps - 1)
    if "timesteps_per_image" in identity_overrides(task_overrides()):
        raise UserError(
            "evaluate.exact=true takes every step, so it does not go with timesteps_per_image: leave one out."
        )
    return num_steps - 1


def measure(cfg: DictConfig, loaded: Loaded, data: ImageData, settings: Settings) -> Likelihood:
    """Measure the bounds that `cfg` asks for. Afterwards the model has the variance of the settings."""
    model, device, options = loaded.model, loaded.fabric.device, cfg.evaluate
    variance, per_image, test = settings
    train = data.split("train").images

    with Evaluations(loaded.fabric.world_size) as progress:

        def bounds_of(
            name: str,
            network: Network,
            chains: dict[str, GaussianDiffusion],
            images: Tensor,
            labels: Tensor | None = None,
        ) -> dict[str, Bound]:
            counted = progress.count(network, NAMES[name], len(images) * (per_image + 1))
            return measure_bounds(counted, chains, images, per_image, cfg.seed, cfg.batch_size, device, labels)

        x0_mse = x0_mse_of(cfg, loaded, data, progress)
        chains: dict[str, GaussianDiffusion] = {
            name: with_variance(model.diffusion, name, x0_mse) for name in VARIANCES
        }
        model.diffusion = chains[variance]
        chain: dict[str, GaussianDiffusion] = {variance: model.diffusion}
        labels, train_labels = (labels_of(data, name, model) for name in ("test", "train"))
        under = bounds_of("test", loaded.network, chains, test, None if labels is None else labels[: len(test)])
        bounds = {"test": under[variance]}
        train_images, empirical_images = (
            number if cfg.num_images is None else min(number, cfg.num_images)
            for number in (options.train_images, options.empirical_images)
        )
        if train_images:
            own = None if train_labels is None else spread(train_labels, train_images)
            bounds["train"] = bounds_of("train", loaded.network, chain, spread(train, train_images), own)[variance]
        if empirical_images:
            # The optimal denoiser needs float64, which not every accelerator has.
            training_set = train.to(device if device.type == "cuda" else "cpu")
            network = EmpiricalDenoiser(training_set, model.diffusion.alpha_bars)
            # A subsequence of all timesteps takes a network that returns x_0.
            chain = {variance: model.diffusion.subsequence(torch.arange(model.diffusion.num_steps))}
            for name, images in {"empirical_test": test, "empirical_train": train}.items():
                bounds[name] = bounds_of(name, network, chain, spread(images, empirical_images))[variance]
    return Likelihood(variance, under, bounds)


def up_to(name: str, value: int | None, most: int) -> int:
    """Return `value`; None means `most`.

    Raises:
        UserError: `value` is not from 1 to `most`.
    """
    if value is None:
        return most
    if not 1 <= value <= most:
        raise UserError(f"{name}={value} must be from 1 to {most}.")
    return value


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Estimate]]) -> Table:
    shown = display.table(title, *columns)
    for name, estimates in rows.items():
        if name == "total":
            shown.add_section()
        shown.add_row(name, *map(_shown, estimates))
    return shown


def _shown(value: Estimate) -> str:
    digits = 4 if abs(value.mean) < 10 else 1
    return f"{value.mean:.{digits}f} ± {value.se:.{digits}f}"
