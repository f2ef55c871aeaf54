"""`ddpm sample`: draws images from a checkpoint, or edits images of the test set."""

import time
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image
from torch import Tensor

from ddpm.commands import display, from_checkpoint
from ddpm.commands.command import Plan
from ddpm.commands.edits import Chain, Mode
from ddpm.commands.evaluations import Evaluations
from ddpm.commands.from_checkpoint import Loaded
from ddpm.config import build, override
from ddpm.data import pictures, to_model_range, to_uint8
from ddpm.devices import device_name
from ddpm.diffusion import Ancestral, Sampler
from ddpm.errors import UserError
from ddpm.runs import provenance, write_json
from ddpm.runs.files import make_folder
from ddpm.training.module import DDPM


class SampleResult(NamedTuple):
    """The images of one command, and their picture."""

    images: Tensor
    """[N, C, H, W] in [-1, 1]"""
    evaluations: int
    """network evaluations; a batch of B images counts B"""
    picture: Image.Image
    inputs: Tensor | None = None
    """the images that a mode started from, [M, C, H, W] in [-1, 1]"""


def run(cfg: DictConfig) -> None:
    """Writes `num_samples` images, or `num_samples` in each row of a mode, as one picture and as an array.

    Raises:
        UserError: checkpoint, data or image do not exist, or sampler or mode do not fit the checkpoint.
    """
    if not all(isinstance(number, int) and number >= 1 for number in (cfg.num_samples, cfg.batch_size)):
        raise UserError("num_samples and batch_size must be whole numbers, at least 1.")
    sampler: Sampler = build(cfg.sampler, Sampler)
    mode: Mode | None = build(cfg.mode, Mode) if cfg.mode else None
    loaded = from_checkpoint.load(cfg)
    checkpoint, model, fabric, directory = loaded
    if cfg.variance is not None and not isinstance(sampler, Ancestral):
        raise UserError(f"variance={cfg.variance} is of the ancestral chain alone: sampler=ancestral, or leave it out.")
    from_checkpoint.set_variance(model, cfg.variance, checkpoint)
    steps = model.check_sampler(sampler)
    if mode is not None and fabric.world_size > 1:
        raise UserError("a mode works on one device: leave trainer.devices out.")

    started = time.perf_counter()
    result = draw(cfg, loaded, sampler, steps) if mode is None else edit(cfg, loaded, sampler, steps, mode)
    seconds = time.perf_counter() - started
    if not fabric.is_global_zero:
        return

    make_folder(directory)
    arrays = {"images": result.images} | ({} if result.inputs is None else {"inputs": result.inputs})
    pixels = {name: to_uint8(images).cpu().numpy() for name, images in arrays.items()}
    result.picture.save(directory / "samples.png")
    np.savez_compressed(directory / "samples.npz", **pixels)  # type: ignore[arg-type]
    write_json(directory / "provenance.json", provenance(device_name(fabric.device)) | {"checkpoint": checkpoint})
    each = round(result.evaluations / len(result.images))
    display.console.print(f"{len(result.images)} images in {seconds:.1f} s, {each} network evaluations each")
    display.results(
        directory,
        [
            "samples.png: all of them",
            "samples.npz: " + ", ".join(f"{name}, uint8 {list(array.shape)}" for name, array in pixels.items()),
        ],
        [f"ddpm evaluate {override('ckpt', checkpoint)}"],
    )


def plan(cfg: DictConfig) -> Plan:
    """Returns what `run` would do."""
    return from_checkpoint.plan(cfg, "draw images")


def draw(cfg: DictConfig, loaded: Loaded, sampler: Sampler, steps: int) -> SampleResult:
    """Returns images drawn from noise."""
    evaluations = cfg.num_samples * steps
    with Evaluations(loaded.fabric.world_size) as progress:
        images = from_checkpoint.sample(cfg, loaded, sampler, progress.part(f"sampling, {steps} steps", evaluations))
    return SampleResult(images, evaluations, pictures.image_grid(images))


def edit(cfg: DictConfig, loaded: Loaded, sampler: Sampler, steps: int, mode: Mode) -> SampleResult:
    """Returns images that `mode` makes from images of the test set."""
    images = pick_images(cfg, loaded.model).to(loaded.fabric.device)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        outputs = []
        for batch in zip(x_t.split(cfg.batch_size), t.split(cfg.batch_size), strict=True):
            outputs.append(loaded.network(*batch))
            advance(len(outputs[-1]))
        return torch.cat(outputs)

    chain = Chain(network, loaded.model.diffusion, sampler)
    try:
        evaluations = mode.evaluations(chain, len(images), cfg.num_samples)
    except ValueError as error:
        raise UserError(f"mode: {error}") from error
    with Evaluations() as progress, torch.no_grad():
        advance = progress.part(f"sampling, {steps} steps", evaluations)
        edited = mode(chain, images, cfg.num_samples, cfg.seed)

    made = edited.images.flatten(0, 1).clamp(-1, 1)
    picture = pictures.image_table(edited.groups(), mode.captions(cfg.images))
    return SampleResult(made, evaluations, picture, images)


def pick_images(cfg: DictConfig, model: DDPM) -> Tensor:
    """Returns the images of the test set with the indices in `cfg.images`, [N, C, H, W] in [-1, 1]."""
    if not isinstance(cfg.images, ListConfig) or not all(type(index) is int for index in cfg.images) or not cfg.images:
        raise UserError(f"images={cfg.images}: name some of the test set by their numbers, as in images=[0,3].")
    data = from_checkpoint.data_of(cfg, model)
    data.prepare_data()
    data.setup()
    images = data.split("test").images
    for index in cfg.images:
        if not 0 <= index < len(images):
            raise UserError(f"images: there is no {index}, the test set has the images 0 to {len(images) - 1}.")
    return to_model_range(images[list(cfg.images)])
