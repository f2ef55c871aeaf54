"""`ddpm denoise`: runs the forward chain on an image, and the reverse chain with the true x_0 and with the network."""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from ddpm.commands import display, from_checkpoint
from ddpm.commands.chains import NUM_FRAMES, NUM_SHOWN, X0, RecordedChain, evenly, run_chains
from ddpm.commands.command import Plan
from ddpm.commands.denoise_page import write_page
from ddpm.commands.results_folder import make_results_folder
from ddpm.config import build
from ddpm.data import ImageData, to_model_range
from ddpm.data.pictures import save_animation
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import UserError
from ddpm.metrics import plots
from ddpm.runs import ckpt_override, identity_overrides, task_overrides, write_json
from ddpm.runs.files import write_csv
from ddpm.training.hardware import number_of_processes
from ddpm.training.module import DDPM


class Style(NamedTuple):
    """The names of a chain in the pictures."""

    row: str
    """in denoise.png"""
    curve: str
    """in error.png"""
    panel: str | None = None
    """in denoise.gif; None if the chain is not in it"""


STYLES = {
    "forward": Style("forward →\n$q(x_t|x_{t-1})$", "forward chain"),
    "oracle": Style("← oracle\n$q(x_{t-1}|x_t, x_0)$", "reverse chain, true $x_0$", "true x0 known"),
    "learned": Style("← learned\n$p_\\theta(x_{t-1}|x_t)$", "reverse chain, learned", "learned"),
    "predicted_x0": Style(
        "its predicted\n$\\hat x_0(x_t, t)$", "predicted $x_0$ in the learned chain", "its predicted x0"
    ),
}
"""by the names of the chains in files and tables; "predicted_x0" is what the learned chain predicts at each step"""


def run(cfg: DictConfig) -> None:
    """Write the chains as a picture and an animation, and their RMSE to x_0 over the timesteps.

    Raises:
        UserError: checkpoint, data or image do not exist, or both a schedule and a checkpoint are given.
    """
    check(cfg)
    if cfg.ckpt is None:
        checkpoint, network = None, None
        fabric = from_checkpoint.build_fabric(cfg.trainer)
        diffusion = build_diffusion(cfg).to(fabric.device)
        directory = from_checkpoint.directory_for(cfg, None)
        model = None
    else:
        loaded = from_checkpoint.load(cfg)
        checkpoint, model, fabric, directory = loaded
        network, diffusion = loaded.network, model.diffusion
    data, image, label = pick_image(cfg, model)
    is_conditional = model is not None and model.num_classes is not None
    own = network
    if network is not None and is_conditional:
        own = partial(network, labels=torch.tensor([label], device=fabric.device))
    chains = run_chains(image.to(fabric.device), diffusion, own, cfg.seed)

    make_results_folder(directory, fabric.device, checkpoint)
    draw(directory, chains, diffusion)
    write_errors(directory / "error.csv", chains)
    page = directory / "denoise.html"
    write_page(page, data, cfg.image_index, diffusion, network, cfg.seed, fabric.device, is_conditional)
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
    write_json(directory / "metrics.json", final_errors(chains) | facts)
    display.console.print(error_table(chains, diffusion))
    if checkpoint is None:
        following = ["ddpm train experiment=quickstart", "ddpm denoise ckpt=outputs/train/quickstart/base"]
    else:
        ckpt = ckpt_override(checkpoint)
        following = [f"ddpm denoise {ckpt} image_index={cfg.image_index + 1}", f"ddpm evaluate {ckpt}"]
    display.results(
        directory,
        [
            "denoise.html: every timestep, with a slider; open it in a browser",
            "denoise.png: the chains side by side",
            "denoise.gif: the reverse chains as an animation",
            "error.png, error.csv: the distance to x_0 over the timesteps",
        ],
        following,
    )


def plan(cfg: DictConfig) -> Plan:
    """Return what `run` would do."""
    check(cfg)
    if cfg.ckpt is None:
        build_diffusion(cfg)
        pick_image(cfg, None)
        return Plan(from_checkpoint.directory_for(cfg, None), "noise and denoise a digit with the true x_0")
    checkpoint, model = from_checkpoint.read(cfg)
    pick_image(cfg, model)
    return Plan(from_checkpoint.directory_for(cfg, checkpoint), "noise and denoise a digit")


def check(cfg: DictConfig) -> None:
    """Raise a UserError for several processes, and for a schedule beside a checkpoint, which has its own."""
    if number_of_processes(cfg.trainer) > 1:
        raise UserError("denoise works on one image on one device: set trainer.devices=1 and trainer.num_nodes=1.")
    if cfg.ckpt is not None and "schedule" in named_groups():
        raise UserError("schedule and ckpt do not go together: the checkpoint has its own schedule. Leave one out.")


def named_groups() -> set[str]:
    """Return the first parts of the keys that the user set."""
    return {key.split(".")[0] for key in identity_overrides(task_overrides())}


def build_diffusion(cfg: DictConfig) -> GaussianDiffusion:
    return GaussianDiffusion(build(cfg.schedule, Tensor), "x0")


def pick_image(cfg: DictConfig, model: DDPM | None) -> tuple[ImageData, Tensor, int]:
    """Return the data set, image `image_index` of its test set, [1, C, H, W] in [-1, 1], and the image's label.

    The default data set is that of the model, if there is a model.
    """
    if model is None:
        data: ImageData = build(cfg.data, ImageData)
    else:
        if "data" not in named_groups():
            cfg.data = None
        data = from_checkpoint.data_of(cfg, model)
    images, labels = data.ready().split("test")
    index = cfg.image_index
    if not 0 <= index < len(images):
        raise UserError(f"image_index={index}: the test set has the images 0 to {len(images) - 1}.")
    if model is not None:
        from_checkpoint.labels_of(data, "test", model)  # of all images: the page shows others too
    return data, to_model_range(images[index : index + 1]), int(labels[index])


def signal(diffusion: GaussianDiffusion, t: int) -> str:
    """Return ᾱ_t with two significant digits, or with four decimals near 1."""
    alpha_bar = diffusion.alpha_bars[t].item()
    return f"{alpha_bar:.4f}" if alpha_bar > 0.99 else f"{alpha_bar:.2g}"


def draw(directory: Path, chains: dict[str, RecordedChain], diffusion: GaussianDiffusion) -> None:
    """Write denoise.png, denoise.gif and error.png."""
    shown = [X0, *evenly(diffusion.num_steps, NUM_SHOWN)]
    rows = {STYLES[name].row: [chain.images.get(t) for t in shown] for name, chain in chains.items()}
    titles = ["$x_0$"] + [f"t = {t}\n$\\bar\\alpha_t$ = {signal(diffusion, t)}" for t in shown[1:]]
    plots.chains(rows, titles).savefig(directory / "denoise.png")

    timesteps = torch.arange(X0, diffusion.num_steps)
    curves = {STYLES[name].curve: torch.tensor(chain.rmse) for name, chain in chains.items()}
    plots.errors(timesteps, curves).savefig(directory / "error.png")

    frames = [*reversed(evenly(diffusion.num_steps, NUM_FRAMES)), X0]
    panels = {
        panel: [chain.images.get(t, chain.images[max(t, 0)]) for t in frames]
        for name, chain in chains.items()
        if (panel := STYLES[name].panel)
    }
    captions = [f"t = {t}" if t >= 0 else "the end" for t in frames]
    save_animation(directory / "denoise.gif", panels, captions)


def write_errors(path: Path, chains: dict[str, RecordedChain]) -> None:
    """Write the RMSE to x_0 of each chain; t = -1 is the image itself, where the predicted x_0 has no value."""
    rows = zip(*(chain.rmse for chain in chains.values()), strict=True)
    cells = ([t, *(None if math.isnan(error) else error for error in row)] for t, row in enumerate(rows, start=X0))
    write_csv(path, ["t", *chains], cells)


def final_errors(chains: dict[str, RecordedChain]) -> dict[str, float]:
    """Return the RMSE to x_0 at the end of each chain: x_T of the forward chain, the image of a reverse chain."""
    ends = {"forward": len(chains["forward"].rmse) - 2, "oracle": X0, "learned": X0, "predicted_x0": 0}
    return {f"rmse/{name}": chain.rmse_at(ends[name]) for name, chain in chains.items()}


def error_table(chains: dict[str, RecordedChain], diffusion: GaussianDiffusion) -> Table:
    table = display.table("RMSE to x_0 (pixels in -1 … 1)", "t", "ᾱ", *chains)
    table.columns[0].justify = "right"
    for t in [X0, *evenly(diffusion.num_steps, NUM_SHOWN)]:
        first = ("x_0", "1") if t == X0 else (str(t), signal(diffusion, t))
        numbers = [chain.rmse_at(t) for chain in chains.values()]
        table.add_row(*first, *("" if math.isnan(number) else f"{number:.3f}" for number in numbers))
    return table
