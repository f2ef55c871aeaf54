"""`ddpm evaluate`: the variational bound of a checkpoint on the test set."""

import csv
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ddpm import plots
from ddpm.data import ImageData, to_model_range
from ddpm.devices import device_name
from ddpm.diffusion import GaussianDiffusion, VLBTerms, vlb_terms
from ddpm.diffusion.process import Denoise
from ddpm.errors import UserError
from ddpm.module import GOLDEN_RATIO
from ddpm.runs import load_checkpoint, provenance, write_json
from ddpm.runs.files import make_folder
from ddpm.seeding import ImageNoise, Stream, seed_at
from ddpm.tasks import display, from_checkpoint

MAX_BINS = 100
MIN_IN_BIN = 20  # divergences


def run(cfg: DictConfig) -> None:
    """Write the bound, in total and term by term, and its curve over the timesteps.

    Raises:
        UserError: no such checkpoint or data, or a number of images or timesteps that there is not.
    """
    if cfg.batch_size < 1:
        raise UserError("batch_size must be at least 1.")
    loaded = from_checkpoint.load(cfg)
    checkpoint, model, fabric, directory = loaded
    diffusion = model.diffusion
    per_image = up_to("timesteps_per_image", cfg.timesteps_per_image, diffusion.num_steps - 1)
    data = from_checkpoint.data_of(cfg, model)
    data.prepare_data()
    data.setup()
    images = data.split("test").images
    images = images[: up_to("num_images", cfg.num_images, len(images))]
    timesteps = stratified_timesteps(len(images), per_image, diffusion.num_steps, cfg.seed)

    started = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("", total=len(images))
        terms = bound(
            loaded.denoise, diffusion, images, timesteps, cfg.seed, cfg.batch_size, fabric.device,
            on_images=lambda n: progress.advance(task, n),
        )  # fmt: skip
    seconds = time.perf_counter() - started

    curve = Curve.of(timesteps, terms.kl, diffusion.num_steps)
    summary = summarise(terms, timesteps, curve)
    facts = {
        "data": describe(data),
        "images": len(images),
        "timesteps_per_image": per_image,
        "num_steps": diffusion.num_steps,
        "clip_x0": diffusion.clip_x0,
        "variance": diffusion.variance,
        "weights": "EMA",
        "step": load_checkpoint(checkpoint)["global_step"],
        "precision": fabric._precision.precision,
        "seed": cfg.seed,
        "checkpoint": checkpoint,
    }
    make_folder(directory)
    curve.write(directory / "kl.csv")
    plots.divergences(curve.edges, curve.mean, curve.se, summary["reconstruction"].mean, summary["total"].mean).savefig(
        directory / "kl.png"
    )
    numbers = {f"bpd/{name}": estimate.mean for name, estimate in summary.items()}
    errors = {f"bpd/{name}_se": estimate.se for name, estimate in summary.items()}
    write_json(directory / "metrics.json", numbers | errors | facts)
    write_json(directory / "provenance.json", provenance(device_name(fabric.device)) | {"checkpoint": checkpoint})

    display.console.print(table(summary, facts))
    display.console.print(f"{len(images)} images in {seconds:.1f} s, {per_image + 1} network evaluations each")
    ckpt = shlex.quote(str(checkpoint))
    display.results(
        directory,
        ["metrics.json: these numbers", "kl.png, kl.csv: the KL of the steps over the timesteps"],
        [f"ddpm denoise ckpt={ckpt}", f"ddpm sample ckpt={ckpt}"],
    )


def up_to(name: str, value: int | None, most: int) -> int:
    """`value`, or all that there is when None."""
    if value is None:
        return most
    if not 1 <= value <= most:
        raise UserError(f"{name}={value}: there are 1 to {most}, and null takes all.")
    return value


def stratified_timesteps(num_images: int, per_image: int, num_steps: int, seed: int) -> Tensor:
    """Timesteps of 1 … T-1 for each image, int64 [N, K]: one in each K-th of them, at a place in it that follows
    the golden ratio over the images, so that all images together cover every timestep evenly.

    With K = T-1 each image has every timestep.
    """
    shift = seed_at(Stream.EVALUATION, seed) / 2**64
    place = (shift + torch.arange(num_images, dtype=torch.float64) * GOLDEN_RATIO) % 1
    position = (torch.arange(per_image) + place[:, None]) / per_image
    return 1 + (position * (num_steps - 1)).long().clamp(max=num_steps - 2)


@torch.no_grad()
def bound(
    denoise: Denoise,
    diffusion: GaussianDiffusion,
    images: Tensor,
    timesteps: Tensor,
    seed: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    on_images: Callable[[int], None] = lambda n: None,
) -> VLBTerms:
    """The bound's terms of uint8 images [N, C, H, W] at `timesteps` [N, K]; float64 on the CPU.

    Image i's noise is a function of (seed, i): the numbers do not depend on the batch size, to rounding.
    """
    batches = []
    for indices in torch.arange(len(images)).split(batch_size):
        x0 = to_model_range(images[indices].to(device))
        noise = ImageNoise(Stream.EVALUATION, seed, indices=indices.tolist())
        terms = vlb_terms(denoise, diffusion, x0, timesteps[indices], noise)
        batches.append([term.double().cpu() for term in terms])
        on_images(len(indices))
    return VLBTerms(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


class Curve(NamedTuple):
    """The KL of one step over the timesteps, in bins: bin i holds edges[i] ≤ t < edges[i+1]."""

    edges: Tensor
    """int64 [bins + 1], from 1 to T"""
    mean: Tensor
    """bits/dim, [bins]"""
    se: Tensor
    """of the mean, [bins]; an image's divergences count together, as they are not independent"""
    n: Tensor
    """divergences in the bin, int64 [bins]"""

    @classmethod
    def of(cls, timesteps: Tensor, kl: Tensor, num_steps: int) -> Self:
        """From divergences [N, K] in bits/dim at `timesteps` [N, K] that cover 1 … T-1 evenly."""
        num_bins = min(MAX_BINS, num_steps - 1, max(timesteps.numel() // MIN_IN_BIN, 1))
        edges = torch.linspace(1, num_steps, num_bins + 1).round().long()
        bins = torch.bucketize(timesteps, edges, right=True) - 1
        empty = kl.new_zeros(len(kl), num_bins)
        n = empty.scatter_add(1, bins, torch.ones_like(kl)).sum(0)
        mean = empty.scatter_add(1, bins, kl).sum(0) / n
        deviation = empty.scatter_add(1, bins, kl - mean[bins])  # [N, bins]
        # A ratio of two sums over images: its standard error, linearised.
        return cls(edges, mean, standard_error(deviation) * len(kl) / n, n.long())

    def at(self, timesteps: Tensor) -> Tensor:
        """The mean at each of `timesteps`, any shape."""
        return self.mean[torch.bucketize(timesteps, self.edges, right=True) - 1]

    def write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["t_from", "t_to", "kl_bits_per_dim", "se", "n"])
            columns = (self.edges[:-1], self.edges[1:] - 1, self.mean, self.se, self.n)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))


class Estimate(NamedTuple):
    """A mean over images and its standard error."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: Tensor, deviations: Tensor | None = None) -> Self:
        """From a value for each image, [N]; `deviations` if its error is not that of the values' own spread."""
        spread = values if deviations is None else deviations
        return cls(values.mean().item(), standard_error(spread).item())


def standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first dimension; NaN where one value is all there is."""
    return values.std(dim=0) / len(values) ** 0.5 if len(values) > 1 else values[0] * torch.nan


def summarise(terms: VLBTerms, timesteps: Tensor, curve: Curve) -> dict[str, Estimate]:
    """The bound and its three parts, in bits/dim; that of the KL divergences is their sum over t ≥ 1.

    That images were asked at different timesteps is no error, because all together cover them evenly: what counts
    is how far an image's divergences are from the curve.
    """
    steps = int(curve.edges[-1]) - 1
    deviation = steps * (terms.kl - curve.at(timesteps)).mean(dim=1)
    return {
        "prior": Estimate.of(terms.prior),
        "kl": Estimate.of(steps * terms.kl.mean(dim=1), deviation),
        "reconstruction": Estimate.of(terms.reconstruction),
        "total": Estimate.of(terms.total(steps + 1), terms.prior + deviation + terms.reconstruction),
    }


def describe(data: ImageData) -> str:
    """The data set's name, and its folder where it has one."""
    return " ".join([type(data).__name__, *([str(data.root)] if hasattr(data, "root") else [])])


def table(summary: Mapping[str, Estimate], facts: Mapping[str, Any]) -> Table:
    total = summary["total"].mean
    shown = Table(
        "term", "bits/dim", "± se", "share",
        title="Variational bound on the test set",
        caption=", ".join(f"{name} {value}" for name, value in facts.items()),
        title_justify="left",
        caption_justify="left",
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, estimate in summary.items():
        if name == "total":
            shown.add_section()
        shown.add_row(name, f"{estimate.mean:.5f}", f"{estimate.se:.5f}", f"{estimate.mean / total:.1%}")
    return shown


class Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / (task.elapsed or 1):.0f} images/s")


def progress_bar() -> Progress:
    return Progress(BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn(), console=display.console)
