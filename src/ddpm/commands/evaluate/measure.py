"""`ddpm evaluate`: the variational bound of a checkpoint, and the quality of its samples or of anybody's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ddpm.commands import display, from_checkpoint
from ddpm.commands.command import Plan
from ddpm.commands.evaluate import bits_per_dim, quality_cost, sample_quality
from ddpm.commands.evaluate.bits_per_dim import Likelihood
from ddpm.commands.evaluate.sample_quality import SampleQuality
from ddpm.config import build, conf_dir, override, user_path
from ddpm.data import ImageData
from ddpm.devices import device_name
from ddpm.errors import UserError
from ddpm.metrics.quality import MIN_IMAGES
from ddpm.metrics.samples_file import read_samples, seem_inverted
from ddpm.runs import (
    identity_overrides,
    load_checkpoint,
    overrides_with_effect,
    provenance,
    run_directory,
    task_overrides,
    write_json,
)
from ddpm.runs.files import make_folder

READ_WITH_SAMPLES = ("samples", "data")
"""what makes a difference where samples are judged, and no model"""


def run(cfg: DictConfig) -> None:
    """Write the bound and its curve over the timesteps, and how samples compare with real digits.

    Raises:
        UserError: no such checkpoint, samples or data, or a number of images or timesteps that there is not.
    """
    check(cfg)
    if cfg.ckpt is None:
        measure_samples(cfg)
    else:
        measure_checkpoint(cfg)


def plan(cfg: DictConfig) -> Plan:
    """What `run` would do."""
    check(cfg)
    if cfg.ckpt is None:
        return Plan(directory_of_samples(cfg), f"judge {cfg.samples}")
    return from_checkpoint.plan(cfg, "measure")


def after_sweep(cfg: DictConfig, plans: Sequence[Plan]) -> None:
    """Show the quality of all jobs' samples against their cost."""
    quality_cost.compare([plan.directory for plan in plans])


def check(cfg: DictConfig) -> None:
    if cfg.ckpt is None and cfg.samples is None:
        raise UserError(
            "give what to evaluate: a checkpoint, or samples of digits, for example\n"
            "  ddpm evaluate ckpt=outputs/train/quickstart/base"
        )
    if cfg.ckpt is not None and cfg.samples is not None:
        raise UserError("ckpt and samples do not go together: give a checkpoint, or samples of digits.")
    if cfg.samples is not None and (
        given := identity_overrides(task_overrides(), [*READ_WITH_SAMPLES, *cfg.not_identity])
    ):
        raise UserError(f"{', '.join(given)} would make no difference: samples are judged as they are.")
    if not all(isinstance(number, int) for number in (cfg.num_samples, cfg.batch_size)) or cfg.batch_size < 1:
        raise UserError("num_samples and batch_size must be whole numbers, and batch_size at least 1.")
    if cfg.ckpt is not None and not (cfg.num_samples == 0 or cfg.num_samples >= MIN_IMAGES):
        raise UserError(f"num_samples={cfg.num_samples}: at least {MIN_IMAGES}, or 0 to leave sample quality out.")


def measure_checkpoint(cfg: DictConfig) -> None:
    loaded = from_checkpoint.load(cfg)
    checkpoint, model, fabric, directory = loaded
    data = with_images(from_checkpoint.data_of(cfg, model))
    bound = bits_per_dim.measure(cfg, loaded, data) if cfg.num_images != 0 else None
    if bound is None:
        from_checkpoint.set_variance(model, cfg.variance, checkpoint)
    drawn = None
    if cfg.num_samples and sample_quality.knows(data):
        drawn = sample_quality.draw(cfg, loaded)
    elif cfg.num_samples:
        display.console.print("Sample quality is left out: its feature network knows MNIST's digits alone.")
    if bound is None and drawn is None:
        raise UserError("nothing is left to measure: num_images or num_samples must be above 0.")
    if not fabric.is_global_zero:  # its share of the work is done
        return
    judged = None if drawn is None else sample_quality.judge(cfg, drawn, data)

    facts = {
        "data": from_checkpoint.describe(data),
        "num_steps": model.diffusion.num_steps,
        "clip_x0": model.diffusion.clip_x0,
        "variance": model.diffusion.variance,
        "weights": "EMA",
        "step": load_checkpoint(checkpoint)["global_step"],
        "precision": fabric.strategy.precision.precision,
        "seed": cfg.seed,
        "checkpoint": checkpoint,
        **({} if bound is None else {"x0_mse_draws": cfg.evaluate.x0_mse_draws}),
    }
    ckpt = override("ckpt", checkpoint)
    write(directory, bound, judged, facts, device_name(fabric.device))
    show(directory, bound, judged, facts, [f"ddpm denoise {ckpt}", f"ddpm sample {ckpt} variance=optimal"])


def measure_samples(cfg: DictConfig) -> None:
    try:
        samples = read_samples(user_path(cfg.samples))
    except ValueError as error:
        raise UserError(f"samples: {error}") from error
    if seem_inverted(samples):
        display.console.print("The samples seem inverted: expected white digits on a black background.")
    data = with_images(build(cfg.data if cfg.data is not None else mnist(cfg), ImageData))
    if not sample_quality.knows(data):
        raise UserError("samples are judged by a network that knows MNIST's digits alone: data=mnist or mnist_mini.")
    origin = {"samples": user_path(cfg.samples), "num_samples": len(samples)}
    judged = sample_quality.judge(cfg, sample_quality.Drawn(samples, origin), data)
    facts = {"data": from_checkpoint.describe(data)}
    directory = directory_of_samples(cfg)
    write(directory, None, judged, facts, device_name(torch.device("cpu")))
    show(directory, None, judged, facts, [])


def mnist(cfg: DictConfig) -> DictConfig:
    """The config of all of MNIST, beside which other people's digits are judged."""
    data = OmegaConf.load(conf_dir() / "data" / "mnist.yaml")
    return OmegaConf.create({"paths": cfg.paths, "seed": cfg.seed, "data": data}).data


def with_images(data: ImageData) -> ImageData:
    data.prepare_data()
    data.setup()
    return data


def directory_of_samples(cfg: DictConfig) -> Path:
    return run_directory(
        "evaluate", cfg.paths.outputs, overrides_with_effect("evaluate"), not_identity=cfg.not_identity
    )


def write(
    directory: Path, bound: Likelihood | None, judged: SampleQuality | None, facts: Mapping[str, Any], device: str
) -> None:
    """Write metrics.json, provenance.json, the pictures, and the same for TensorBoard."""
    make_folder(directory)
    parts = [part for part in (bound, judged) if part is not None]
    metrics = {name: value for part in parts for name, value in part.metrics().items()}
    for old in directory.glob("events.out.tfevents.*"):  # of an earlier evaluation, which this one replaces
        old.unlink()
    with SummaryWriter(str(directory)) as tensorboard:
        step = facts.get("step")
        for name, value in metrics.items():
            tensorboard.add_scalar(f"evaluate/{name}", value, step)
        for part in parts:
            part.write(directory)
        for path in sorted(directory.glob("*.png")):
            with Image.open(path) as picture:
                tensorboard.add_image(
                    f"evaluate/{path.stem}", np.asarray(picture.convert("RGB")), step, dataformats="HWC"
                )
    known = {name: value for part in parts for name, value in part.facts().items()}
    write_json(directory / "metrics.json", {**metrics, **facts, **known})
    write_json(directory / "provenance.json", provenance(device) | {"checkpoint": facts.get("checkpoint")})


def show(
    directory: Path,
    bound: Likelihood | None,
    judged: SampleQuality | None,
    facts: Mapping[str, Any],
    next_commands: Sequence[str],
) -> None:
    files = ["metrics.json: these numbers"]
    known = dict(facts)
    if bound is not None:
        for table in bound.tables():
            display.console.print(table)
        known |= bound.facts()
        files.append("kl.png, kl.csv: the KL of the steps over the timesteps")
    if judged is not None:
        display.console.print(judged.table())
        known |= judged.facts()
        files += [
            "samples.png: the first of the samples",
            "closest.png: those nearest to a training image",
            "classes.png: which digits they are",
        ]
    display.console.print(", ".join(f"{name} {value}" for name, value in known.items()))
    display.results(directory, files, next_commands)
