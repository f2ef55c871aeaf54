"""`ddpm sample`: draws images from a checkpoint, or edits images of the test set."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ddpm.commands import display, from_checkpoint
from ddpm.commands.command import Plan
from ddpm.commands.edits import Chain, Mode
from ddpm.commands.evaluations import Evaluations
from ddpm.commands.from_checkpoint import Loaded
from ddpm.commands.results_folder import make_results_folder
from ddpm.config import build, override
from ddpm.data import pictures, to_model_range, to_uint8
from ddpm.diffusion import Ancestral, Sampler
from ddpm.errors import UserError
from ddpm.training.hardware import number_of_processes
from ddpm.training.module import DDPM


class Job(NamedTuple):
    """What the command works with, built and checked."""

    sampler: Sampler
    steps: int
    """of the sampler"""
    mode: Mode | None
    inputs: Tensor | None
    """the images that the mode starts from, [M, C, H, W] in [-1, 1] on the CPU"""
    evaluations: int
    """network evaluations; a batch of B images counts B"""


class SampleResult(NamedTuple):
    """The images of one command, and their picture."""

    images: Tensor
    """[N, C, H, W], uint8 or in [-1, 1]"""
    picture: Image.Image


def run(cfg: DictConfig) -> None:
    """Writes `num_samples` images, or `num_samples` in each row of a mode, as one picture and as an array.

    Raises:
        UserError: checkpoint, data or image do not exist, or sampler or mode do not fit the checkpoint.
    """
    loaded = from_checkpoint.load(cfg)
    job = prepare(cfg, loaded.checkpoint, loaded.model)
    started = time.perf_counter()
    result = draw(cfg, loaded, job) if job.mode is None else edit(cfg, loaded, job)
    seconds = time.perf_counter() - started
    if not loaded.fabric.is_global_zero:
        return

    directory = loaded.directory
    arrays = {"images": result.images} | ({} if job.inputs is None else {"inputs": job.inputs})
    pixels = {name: to_uint8(images).cpu().numpy() for name, images in arrays.items()}
    make_results_folder(directory, loaded.fabric.device, loaded.checkpoint)
    result.picture.save(directory / "samples.png")
    np.savez_compressed(directory / "samples.npz", **pixels)  # type: ignore[arg-type]
    each = round(job.evaluations / len(result.images))
    display.console.print(f"{len(result.images)} images in {seconds:.1f} s, {each} network evaluations each")
    display.results(
        directory,
        [
            "samples.png: all of them",
            "samples.npz: " + ", ".join(f"{name}, uint8 {list(array.shape)}" for name, array in pixels.items()),
        ],
        [f"ddpm evaluate {override('ckpt', loaded.checkpoint)}"],
    )


def plan(cfg: DictConfig) -> Plan:
    """Returns what `run` would do."""
    checkpoint, model = from_checkpoint.read(cfg)
    prepare(cfg, checkpoint, model)
    return Plan(from_checkpoint.results_directory(cfg, checkpoint), "draw images")


def prepare(cfg: DictConfig, checkpoint: Path, model: DDPM) -> Job:
    """Returns the checked parts of the command, and gives the model the variance of `cfg`.

    Raises:
        UserError: see `run`.
    """
    sampler: Sampler = build(cfg.sampler, Sampler)
    if cfg.variance is not None and not isinstance(sampler, Ancestral):
        raise UserError(f"variance={cfg.variance} needs sampler=ancestral: other samplers have no such variance.")
    from_checkpoint.set_variance(model, cfg.variance, checkpoint)
    steps = model.check_sampler(sampler)
    mode: Mode | None = build(cfg.mode, Mode) if cfg.mode else None
    if mode is None:
        return Job(sampler, steps, None, None, cfg.num_samples * steps)
    if number_of_processes(cfg.trainer) > 1:
        raise UserError("a mode works on one device: set trainer.devices=1.")
    inputs = pick_images(cfg, model)
    try:
        evaluations = mode.evaluations(Chain(model.ema, model.diffusion, sampler), len(inputs), cfg.num_samples)
    except ValueError as error:
        raise UserError(f"mode: {error}") from error
    return Job(sampler, steps, mode, inputs, evaluations)


def draw(cfg: DictConfig, loaded: Loaded, job: Job) -> SampleResult:
    """Returns images drawn from noise."""
    with Evaluations(loaded.fabric.world_size) as progress:
        advance = progress.part(f"sampling, {job.steps} steps", job.evaluations)
        images = from_checkpoint.sample(cfg, loaded, job.sampler, advance)
    return SampleResult(images, pictures.image_grid(images))


def edit(cfg: DictConfig, loaded: Loaded, job: Job) -> SampleResult:
    """Returns images that the mode makes from images of the test set."""
    assert job.mode is not None
    assert job.inputs is not None

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        outputs = []
        for batch in zip(x_t.split(cfg.batch_size), t.split(cfg.batch_size), strict=True):
            outputs.append(loaded.network(*batch))
            advance(len(outputs[-1]))
        return torch.cat(outputs)

    chain = Chain(network, loaded.model.diffusion, job.sampler)
    with Evaluations() as progress, torch.no_grad():
        advance = progress.part(f"sampling, {job.steps} steps", job.evaluations)
        edited = job.mode(chain, job.inputs.to(loaded.fabric.device), cfg.num_samples, cfg.seed)
    made = edited.images.flatten(0, 1).clamp(-1, 1)
    return SampleResult(made, pictures.image_table(edited.groups(), job.mode.captions(cfg.images)))


def pick_images(cfg: DictConfig, model: DDPM) -> Tensor:
    """Returns the images of the test set with the indices in `cfg.images`, [N, C, H, W] in [-1, 1]."""
    if not cfg.images:
        raise UserError("images is empty: it must be a list of indices in the test set, as in images=[0,3].")
    images = from_checkpoint.data_of(cfg, model).ready().split("test").images
    for index in cfg.images:
        if not 0 <= index < len(images):
            raise UserError(f"images holds {index}, but the test set has the images 0 to {len(images) - 1}.")
    return to_model_range(images[list(cfg.images)])
