"""`ddpm denoise`: runs the forward chain on an image, and the reverse chain with the true x_0 and with the network."""

import csv
import math
from collections.abc import Collection
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ddpm.commands import display, from_checkpoint
from ddpm.commands.command import Plan
from ddpm.config import build, override
from ddpm.data import ImageData, to_model_range
from ddpm.data.pictures import save_animation
from ddpm.devices import device_name
from ddpm.diffusion import Ancestral, GaussianDiffusion
from ddpm.diffusion.process import Network, RandnLike
from ddpm.errors import UserError
from ddpm.metrics import plots
from ddpm.runs import identity_overrides, overrides_with_effect, provenance, run_directory, task_overrides, write_json
from ddpm.runs.files import make_folder
from ddpm.seeding import ImageNoise, Stream

NUM_SHOWN = 8
NUM_FRAMES = 36
X0 = -1  # the timestep of the image itself, before the first noising step


def run(cfg: DictConfig) -> None:
    """Writes the chains as a picture and an animation, and their RMSE to x_0 over the timesteps.

    Raises:
        UserError: checkpoint, data or image do not exist, or both a schedule and a checkpoint are given.
    """
    if cfg.trainer.devices not in (1, "1") or cfg.trainer.num_nodes != 1:
        raise UserError("denoise walks one image on one device: leave trainer.devices and trainer.num_nodes out.")
    if cfg.ckpt is None:
        checkpoint, network = None, None
        fabric = from_checkpoint.build_fabric(cfg.trainer)
        diffusion = GaussianDiffusion(build(cfg.schedule, Tensor), "x0").to(fabric.device)
        data = build(cfg.data, ImageData)
        directory = directory_of(cfg)
    else:
        leave_to_checkpoint(cfg)
        loaded = from_checkpoint.load(cfg)
        checkpoint, model, fabric, directory = loaded
        network, diffusion = loaded.network, model.diffusion
        data = from_checkpoint.data_of(cfg, model)

    image, label = pick_image(data, cfg.image_index)
    walks = walk(image.to(fabric.device), diffusion, network, cfg.seed)

    make_folder(directory)
    draw(directory, walks, diffusion)
    write_errors(directory / "error.csv", walks)
    facts = {
        "data": type(data).__name__,
        "image_index": cfg.image_index,
        "label": label,
        "num_steps": diffusion.num_steps,
        "clip_x0": diffusion.clip_x0,
        "variance": diffusion.variance,
        "seed": cfg.seed,
        "checkpoint": checkpoint,
    }
    write_json(directory / "metrics.json", final_errors(walks) | facts)
    write_json(directory / "provenance.json", provenance(device_name(fabric.device)) | {"checkpoint": checkpoint})
    display.console.print(table(walks, diffusion))
    ckpt = override("ckpt", checkpoint)
    display.results(
        directory,
        [
            "denoise.png: the chains side by side",
            "denoise.gif: the way back, moving",
            "error.png, error.csv: the distance to x_0 over the timesteps",
        ],
        ["ddpm train experiment=quickstart", "ddpm denoise ckpt=outputs/train/quickstart/base"]
        if checkpoint is None
        else [f"ddpm denoise {ckpt} image_index={cfg.image_index + 1}", f"ddpm evaluate {ckpt}"],
    )


def plan(cfg: DictConfig) -> Plan:
    """Returns what `run` would do."""
    if cfg.ckpt is not None:
        return from_checkpoint.plan(cfg, "walk a digit to noise and back")
    return Plan(directory_of(cfg), "walk a digit to noise and back, with the true x_0")


def directory_of(cfg: DictConfig) -> Path:
    """Returns the results directory for a run without a checkpoint."""
    return run_directory("denoise", cfg.paths.outputs, overrides_with_effect("denoise"), not_identity=cfg.not_identity)


def leave_to_checkpoint(cfg: DictConfig) -> None:
    """Rejects a schedule, and drops the default data set: the checkpoint has both."""
    named = {key.split(".")[0] for key in identity_overrides(task_overrides())}
    if "schedule" in named:
        raise UserError("schedule and ckpt do not go together, since the checkpoint has its own: leave one out.")
    if "data" not in named:
        cfg.data = None


def pick_image(data: ImageData, index: int) -> tuple[Tensor, int]:
    """Returns image `index` of the test set, [1, C, H, W] in [-1, 1], and its label."""
    data.prepare_data()
    data.setup()
    images, labels = data.split("test")
    if not 0 <= index < len(images):
        raise UserError(f"image_index={index}: the test set has the images 0 to {len(images) - 1}.")
    return to_model_range(images[index : index + 1]), int(labels[index])


class Walk:
    """Records a chain: its RMSE to x_0 at each timestep, and its images at some timesteps.

    Args:
        x0: [1, C, H, W].
        num_steps: T; x_t is recorded for t = -1 (x_0 itself) to T-1.
        kept_timesteps: the timesteps whose images are kept.
    """

    def __init__(self, x0: Tensor, num_steps: int, kept_timesteps: Collection[int]):
        self.x0 = x0
        self.kept_timesteps = kept_timesteps
        self.rmse: list[float] = [math.nan] * (num_steps + 1)
        """for t = -1 … T-1; NaN if no image was recorded"""
        self.images: dict[int, Tensor] = {}
        """images at `kept_timesteps`, [C, H, W] on the CPU"""

    def see(self, t: int, image: Tensor) -> None:
        self.rmse[t + 1] = (image - self.x0).square().mean().sqrt().item()
        if t in self.kept_timesteps:
            self.images[t] = image[0].cpu()

    def rmse_at(self, t: int) -> float:
        return self.rmse[t + 1]


@torch.no_grad()
def walk(x0: Tensor, diffusion: GaussianDiffusion, network: Network | None, seed: int) -> dict[str, Walk]:
    """Runs the forward chain from x0 [1, C, H, W], the reverse chain of the oracle, and the learned reverse chain.

    Both reverse chains start from the same x_T and use the same noise, so that only the prediction differs. The learned
    chain needs `network`.
    """
    num_steps = diffusion.num_steps
    timesteps = {X0, *evenly(num_steps, NUM_SHOWN), *evenly(num_steps, NUM_FRAMES)}
    names = ["forward", "oracle"] if network is None else ["forward", "oracle", "learned", "predicted_x0"]
    walks = {name: Walk(x0, num_steps, timesteps) for name in names}

    x_T = forward(x0, diffusion, ImageNoise(Stream.SAMPLING, seed, 1, indices=[0]), walks["forward"])
    oracle = GaussianDiffusion(diffusion.betas, "x0", clip_x0=False).to(x0.device)
    backward(x_T, oracle, lambda x_t, t: x0, way_back_noise(seed), walks["oracle"])
    if network is not None:
        backward(x_T, diffusion, network, way_back_noise(seed), walks["learned"], walks["predicted_x0"])
    return walks


def way_back_noise(seed: int) -> RandnLike:
    return ImageNoise(Stream.SAMPLING, seed, 2, indices=[0])


def evenly(num_steps: int, number: int) -> list[int]:
    """Returns evenly spaced timesteps from 0 to T-1, ascending."""
    return sorted(set(torch.linspace(0, num_steps - 1, number).round().long().tolist()))


def forward(x0: Tensor, diffusion: GaussianDiffusion, randn_like: RandnLike, seen: Walk) -> Tensor:
    """Returns x_T of the forward chain, q(x_t|x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I) (Ho et al. 2020, equation 2)."""
    x_t = x0
    seen.see(X0, x_t)
    for t, beta in enumerate(diffusion.betas.tolist()):
        x_t = math.sqrt(1 - beta) * x_t + math.sqrt(beta) * randn_like(x_t)
        seen.see(t, x_t)
    return x_t


def backward(
    x_T: Tensor,
    diffusion: GaussianDiffusion,
    network: Network,
    randn_like: RandnLike,
    seen: Walk,
    predicted: Walk | None = None,
) -> None:
    """Runs the reverse chain from x_T; `predicted` records the predicted x_0 of each step."""
    seen.see(diffusion.num_steps - 1, x_T)
    steps = Ancestral().iterate(network, diffusion, x_T, randn_like)
    shown = track(steps, "way back", diffusion.num_steps, console=display.console, transient=True)
    for step in shown:
        if predicted is not None:
            predicted.see(step.t, step.x0)
        seen.see(step.t - 1, step.x_t)


def signal(diffusion: GaussianDiffusion, t: int) -> str:
    """Returns ᾱ_t with two significant digits, or with four decimals near 1."""
    alpha_bar = diffusion.alpha_bars[t].item()
    return f"{alpha_bar:.4f}" if alpha_bar > 0.99 else f"{alpha_bar:.2g}"


CAPTIONS = {
    "forward": "forward →\n$q(x_t|x_{t-1})$",
    "oracle": "← oracle\n$q(x_{t-1}|x_t, x_0)$",
    "learned": "← learned\n$p_\\theta(x_{t-1}|x_t)$",
    "predicted_x0": "its predicted\n$\\hat x_0(x_t, t)$",
}
LEGEND = {
    "forward": "forward chain",
    "oracle": "reverse chain, true $x_0$",
    "learned": "reverse chain, learned",
    "predicted_x0": "predicted $x_0$ in the learned chain",
}
PANELS = {"oracle": "true x0 known", "learned": "learned", "predicted_x0": "its predicted x0"}


def draw(directory: Path, walks: dict[str, Walk], diffusion: GaussianDiffusion) -> None:
    """Writes denoise.png, denoise.gif and error.png."""
    shown = [X0, *evenly(diffusion.num_steps, NUM_SHOWN)]
    rows = {CAPTIONS[name]: [seen.images.get(t) for t in shown] for name, seen in walks.items()}
    titles = ["$x_0$"] + [f"t = {t}\n$\\bar\\alpha_t$ = {signal(diffusion, t)}" for t in shown[1:]]
    plots.chains(rows, titles).savefig(directory / "denoise.png")

    timesteps = torch.arange(X0, diffusion.num_steps)
    curves = {LEGEND[name]: torch.tensor(seen.rmse) for name, seen in walks.items()}
    plots.errors(timesteps, curves).savefig(directory / "error.png")

    frames = [*reversed(evenly(diffusion.num_steps, NUM_FRAMES)), X0]
    panels = {
        caption: [walks[name].images.get(t, walks[name].images[max(t, 0)]) for t in frames]
        for name, caption in PANELS.items()
        if name in walks
    }
    captions = [f"t = {t}" if t >= 0 else "the end" for t in frames]
    save_animation(directory / "denoise.gif", panels, captions)


def write_errors(path: Path, walks: dict[str, Walk]) -> None:
    """Writes the RMSE to x_0 of each chain; t = -1 is the image itself, where the predicted x_0 has no value."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["t", *walks])
        for t, row in enumerate(zip(*(seen.rmse for seen in walks.values()), strict=True), start=X0):
            writer.writerow([t, *("" if math.isnan(error) else error for error in row)])


def final_errors(walks: dict[str, Walk]) -> dict[str, float]:
    """Returns the RMSE to x_0 at the end of each chain: x_T of the forward chain, the image of a reverse chain."""
    ends = {"forward": len(walks["forward"].rmse) - 2, "oracle": X0, "learned": X0, "predicted_x0": 0}
    return {f"rmse/{name}": seen.rmse_at(ends[name]) for name, seen in walks.items()}


def table(walks: dict[str, Walk], diffusion: GaussianDiffusion) -> Table:
    shown = Table("t", "ᾱ", *walks, title="RMSE to x_0 (pixels in -1 … 1)", title_justify="left")
    for column in shown.columns:
        column.justify = "right"
    for t in [X0, *evenly(diffusion.num_steps, NUM_SHOWN)]:
        first = ("x_0", "1") if t == X0 else (str(t), signal(diffusion, t))
        numbers = [seen.rmse_at(t) for seen in walks.values()]
        shown.add_row(*first, *("" if math.isnan(number) else f"{number:.3f}" for number in numbers))
    return shown
