"""`ddpm sample`: draw images from a checkpoint."""

import shlex
import time

import numpy as np
from omegaconf import DictConfig
from rich.progress import Progress

from ddpm import plots
from ddpm.configs import build
from ddpm.data import to_uint8
from ddpm.devices import device_name
from ddpm.diffusion import Sampler
from ddpm.errors import UserError
from ddpm.runs import provenance, write_json
from ddpm.runs.files import make_folder
from ddpm.tasks import display, from_checkpoint


def run(cfg: DictConfig) -> None:
    """Write `num_samples` images as one picture and as an array.

    Raises:
        UserError: no such checkpoint, or a sampler that the checkpoint's chain cannot take.
    """
    if cfg.num_samples < 1 or cfg.batch_size < 1:
        raise UserError("num_samples and batch_size must be at least 1.")
    sampler: Sampler = build(cfg.sampler)
    checkpoint, model, fabric, directory = from_checkpoint.load(cfg)
    steps = model.check_sampler(sampler)

    started = time.perf_counter()
    with Progress(console=display.console) as progress, fabric.autocast():
        task = progress.add_task(f"sampling, {steps} steps", total=cfg.num_samples * steps)
        images = model.sample(
            cfg.num_samples, sampler, cfg.seed, cfg.batch_size, on_step=lambda n: progress.advance(task, n)
        )
    seconds = time.perf_counter() - started

    make_folder(directory)
    pixels = to_uint8(images).cpu()
    plots.image_grid(images).save(directory / "samples.png")
    np.savez_compressed(directory / "samples.npz", images=pixels.numpy())
    write_json(directory / "provenance.json", provenance(device_name(fabric.device)) | {"checkpoint": checkpoint})
    display.console.print(f"{len(images)} images in {seconds:.1f} s, {steps} network evaluations each")
    display.results(
        directory,
        [
            "samples.png: all of them",
            f"samples.npz: images, uint8 {list(pixels.shape)}",
        ],
        [f"ddpm evaluate ckpt={shlex.quote(str(checkpoint))}"],
    )
