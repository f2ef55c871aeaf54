"""`ddpm sample`: draws images from a checkpoint, or edits images of the test set."""

import time
from collections.abc import Sequence
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
from ddpm.commands.from_checkpoint import Loaded
from ddpm.commands.progress import Evaluations
from ddpm.commands.results_folder import make_results_folder
from ddpm.commands.variance import set_variance
from ddpm.config import build
from ddpm.data import pictures, to_model_range, to_uint8
from ddpm.diffusion import Guidance, Sampler
from ddpm.errors import UserError
from ddpm.runs import ckpt_override
from ddpm.training.hardware import number_of_processes
from ddpm.training.module import DDPM


class Job(NamedTuple):
    """What the command works with, built and checked."""

    sampler: Sampler
    steps: int
    """of the sampler"""
    guidance: Guidance
    labels: Sequence[int] | None
    """of the images that are drawn, or of those that the mode starts from; None: without labels"""
    mode: Mode | None
    inputs: Tensor | None
    """the images that the mode starts from, [M, C, H, W] in [-1, 1] on the CPU"""
    evaluations: int
    """calls of the network, guided or not; a batch of B images counts B"""


class SampleResult(NamedTuple):
    """The images of one command, and their picture."""

    images: Tensor
    """[N, C, H, W], uint8 or in [-1, 1]"""
    picture: Image.Image


def run(cfg: DictConfig) -> None:
    """Write `num_samples` images, or `num_samples` in each row of a mode, as one picture and as an array.

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
    if job.mode is None:
        timesteps = job.sampler.timesteps(loaded.model.diffusion)
        each = f"{job.guidance.evaluations(timesteps)} network evaluations"
    else:
        guided = "guided " if job.guidance.acts else ""
        each = f"{round(job.evaluations / len(result.images))} {guided}network evaluations"
    display.console.print(f"{len(result.images)} images in {seconds:.1f} s, {each} each")
    display.results(
        directory,
        [
            "samples.png: all of them",
            "samples.npz: " + ", ".join(f"{name}, uint8 {list(array.shape)}" for name, array in pixels.items()),
        ],
        [f"ddpm evaluate {ckpt_override(loaded.checkpoint)}"],
    )


def plan(cfg: DictConfig) -> Plan:
    """Return what `run` would do."""
    checkpoint, model = from_checkpoint.read(cfg)
    prepare(cfg, checkpoint, model)
    return Plan(from_checkpoint.directory_for(cfg, checkpoint), "draw images")


def prepare(cfg: DictConfig, checkpoint: Path, model: DDPM) -> Job:
    """Return the checked parts of the command, and give the model the variance of `cfg`.

    Raises:
        UserError: see `run`.
    """
    sampler: Sampler = build(cfg.sampler, Sampler)
    set_variance(model, cfg.variance, checkpoint, sampler)
    guidance: Guidance = build(cfg.guidance, Guidance)
    steps = model.check_sampler(sampler, guidance)
    mode: Mode | None = build(cfg.mode, Mode) if cfg.mode else None
    if mode is None:
        labels = model.classes(cfg.labels)
        model.check_condition(labels, guidance, cfg.num_samples)
        return Job(sampler, steps, guidance, labels, None, None, cfg.num_samples * steps)
    if number_of_processes(cfg.trainer) > 1:
        raise UserError("a mode works on one device: set trainer.devices=1.")
    if cfg.labels is not None:
        raise UserError("labels and mode do not go together: a mode takes the labels of its images. Leave one out.")
    inputs, labels = pick_images(cfg, model)
    model.check_condition(labels, guidance)
    try:
        evaluations = mode.evaluations(Chain(model.ema, model.diffusion, sampler), len(inputs), cfg.num_samples)
    except ValueError as error:
        raise UserError(f"mode: {error}") from error
    return Job(sampler, steps, guidance, labels, mode, inputs, evaluations)


def draw(cfg: DictConfig, loaded: Loaded, job: Job) -> SampleResult:
    """Return images drawn from noise."""
    with Evaluations(loaded.fabric.world_size) as progress:
        advance = progress.part(f"sampling, {job.steps} steps", job.evaluations)
        images = from_checkpoint.sample(cfg, loaded, job.sampler, advance, job.labels, job.guidance)
    repeat = len(job.labels or [1])
    columns = repeat * max(1, round(len(images) ** 0.5 / repeat))  # so that each column has one label
    return SampleResult(images, pictures.image_grid(images, columns))


def edit(cfg: DictConfig, loaded: Loaded, job: Job) -> SampleResult:
    """Return images that the mode makes from images of the test set."""
    assert job.mode is not None
    assert job.inputs is not None

    guided = loaded.checked(job.guidance(loaded.model.ema, loaded.model.num_classes))

    def network(x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        outputs = []
        for rows in torch.arange(len(x_t), device=x_t.device).split(cfg.batch_size):
            outputs.append(guided(x_t[rows], t[rows], **{name: value[rows] for name, value in condition.items()}))
            advance(len(rows))
        return torch.cat(outputs)

    labels = None if job.labels is None else torch.tensor(job.labels, device=loaded.fabric.device)
    chain = Chain(network, loaded.model.diffusion, job.sampler, labels)
    with Evaluations() as progress, torch.no_grad():
        advance = progress.part(f"sampling, {job.steps} steps", job.evaluations)
        edited = job.mode(chain, job.inputs.to(loaded.fabric.device), cfg.num_samples, cfg.seed)
    made = edited.images.flatten(0, 1).clamp(-1, 1)
    return SampleResult(made, pictures.image_table(edited.groups(), job.mode.captions(cfg.images)))


def pick_images(cfg: DictConfig, model: DDPM) -> tuple[Tensor, list[int] | None]:
    """Return the images of the test set that `cfg.images` names, [N, C, H, W] in [-1, 1], and their labels."""
    if not cfg.images:
        raise UserError("images is empty: it must be a list of indices in the test set, as in images=[0,3].")
    data = from_checkpoint.data_of(cfg, model).ready()
    images, labels = data.split("test").images, from_checkpoint.labels_of(data, "test", model)
    for index in cfg.images:
        if not 0 <= index < len(images):
            raise UserError(f"images holds {index}, but the test set has the images 0 to {len(images) - 1}.")
    chosen = list(cfg.images)
    return to_model_range(images[chosen]), None if labels is None else labels[chosen].tolist()
