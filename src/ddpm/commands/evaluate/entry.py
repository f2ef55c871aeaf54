"""`ddpm evaluate`: the likelihood of a checkpoint, and the quality of its samples or of given samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ddpm.commands import display, from_checkpoint
from ddpm.commands.command import Plan
from ddpm.commands.evaluate import bits_per_dim, quality_cost, sample_quality
from ddpm.commands.evaluate.bits_per_dim import Likelihood
from ddpm.commands.evaluate.sample_quality import Drawn, SampleQuality
from ddpm.commands.results_folder import make_results_folder
from ddpm.commands.variance import set_variance, x0_mse_path
from ddpm.config import build, user_path
from ddpm.data import ImageData
from ddpm.diffusion import Guidance, Sampler
from ddpm.errors import UserError
from ddpm.metrics.features import Digits, Features
from ddpm.metrics.measures import Measure
from ddpm.metrics.quality import check_images
from ddpm.metrics.samples_file import doubts, read_samples
from ddpm.runs import ckpt_override, identity_overrides, load_checkpoint, task_overrides, write_json
from ddpm.training.module import DDPM

READ_WITH_SAMPLES = ("samples", "data", "features", "measures")
"""the settings that have an effect where samples are judged"""
READ_IF_ABOVE_0 = {
    "num_samples": ("sampler", "guidance", "features", "measures"),
    "num_images": ("evaluate", "timesteps_per_image"),
}
"""settings that have an effect only if this number is above 0"""

Part = Likelihood | SampleQuality


def run(cfg: DictConfig) -> None:
    """Write the bound and its curve over the timesteps, and the comparison of samples with real images.

    Raises:
        UserError: checkpoint, samples or data do not exist, or a number of images or timesteps is out of range.
    """
    check(cfg)
    if cfg.ckpt is None:
        judge_samples(cfg)
    else:
        measure_checkpoint(cfg)


def plan(cfg: DictConfig) -> Plan:
    """Return what `run` would do."""
    check(cfg)
    if cfg.ckpt is None:
        prepare_samples(cfg)
        return Plan(from_checkpoint.directory_for(cfg, None), f"judge {cfg.samples}")
    checkpoint, model = from_checkpoint.read(cfg)
    prepare_checkpoint(cfg, checkpoint, model)
    return Plan(from_checkpoint.directory_for(cfg, checkpoint), "measure")


def after_sweep(cfg: DictConfig, plans: Sequence[Plan]) -> None:
    """Show the quality of all jobs' samples against their cost."""
    quality_cost.compare([plan.directory for plan in plans])


def check(cfg: DictConfig) -> None:
    """Raise a UserError for settings that do not fit together, whatever the checkpoint or the samples."""
    if cfg.ckpt is None and cfg.samples is None:
        raise UserError(
            "give what to evaluate: a checkpoint, or samples of images, for example\n"
            "  ddpm evaluate ckpt=outputs/train/quickstart/base"
        )
    if cfg.ckpt is not None and cfg.samples is not None:
        raise UserError("ckpt and samples do not go together: give a checkpoint, or samples of images.")
    if cfg.samples is not None and (
        given := identity_overrides(task_overrides(), [*READ_WITH_SAMPLES, *cfg.not_identity])
    ):
        raise UserError(f"{', '.join(given)} would make no difference: samples are judged as they are.")
    asked = identity_overrides(task_overrides(), cfg.not_identity)
    for number, settings in READ_IF_ABOVE_0.items():
        ignored = asked.keys() - identity_overrides(task_overrides(), [*settings, *cfg.not_identity])
        if cfg.samples is None and cfg[number] == 0 and ignored:
            raise UserError(f"{', '.join(sorted(ignored))} would make no difference with {number}=0.")


# A checkpoint -------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What is measured of a checkpoint, built and checked."""

    data: ImageData
    bound: bits_per_dim.Settings | None
    """None leaves the likelihood out"""
    sampler: Sampler
    features: tuple[str, Features] | None
    """with their name; None leaves sample quality out"""
    measures: list[Measure]
    guidance: Guidance
    labels: list[int] | None
    """of the samples; None if the model is unconditional"""


def prepare_checkpoint(cfg: DictConfig, checkpoint: Path, model: DDPM) -> Job:
    """Return the checked parts of the evaluation. Without the likelihood, it gives the model the variance of `cfg`.

    Raises:
        UserError: see `run`.
    """
    sampler: Sampler = build(cfg.sampler, Sampler)
    guidance: Guidance = build(cfg.guidance, Guidance)
    if cfg.num_samples > 0:
        model.check_sampler(sampler, guidance)
    measures = sample_quality.build_measures(cfg.measures)
    data = from_checkpoint.data_of(cfg, model)
    features = sample_quality.build_features(cfg, data)
    if cfg.num_images == 0 and features is None:
        raise UserError("nothing is left to measure: num_images or num_samples must be above 0.")
    data.ready()
    if features is not None:
        sample_quality.check_data(data)
    labels = sample_quality.draw_labels(cfg, data, model)
    if labels is not None or guidance.acts:  # without samples, a model that needs labels gets none
        model.check_condition(labels, guidance)
    bound = None if cfg.num_images == 0 else bits_per_dim.check(cfg, model, data)
    if bound is None:
        set_variance(model, cfg.variance, checkpoint, sampler)
    return Job(data, bound, sampler, features, measures, guidance, labels)


def measure_checkpoint(cfg: DictConfig) -> None:
    """Measure the likelihood of a checkpoint and the quality of its samples, as far as `cfg` asks for them."""
    loaded = from_checkpoint.load(cfg)
    checkpoint, model, fabric, directory = loaded
    data, bound, sampler, features, measures, guidance, labels = prepare_checkpoint(cfg, checkpoint, model)
    parts: list[Part] = []
    if bound is not None:
        parts.append(bits_per_dim.measure(cfg, loaded, data, bound))
    drawn = None if features is None else sample_quality.draw(cfg, loaded, sampler, guidance, labels)
    if not fabric.is_global_zero:  # its share of the work is done
        return
    if drawn is not None and features is not None:
        parts.append(sample_quality.judge(cfg, drawn, data, features, measures, fabric.device))

    facts = {
        "data": from_checkpoint.describe(data),
        "num_steps": model.diffusion.num_steps,
        "clip_x0": model.diffusion.clip_x0,
        "variance": model.diffusion.variance,
        "weights": from_checkpoint.name_of_weights(cfg),
        "step": load_checkpoint(checkpoint)["global_step"],
        "precision": fabric.strategy.precision.precision,
        "seed": cfg.seed,
        "checkpoint": checkpoint,
        **({} if bound is None else {"x0_mse_draws": cfg.evaluate.x0_mse_draws}),
    }
    make_results_folder(directory, fabric.device, checkpoint)
    ckpt = ckpt_override(checkpoint)
    # Without the likelihood, the x_0 error is not measured, and for some settings it is not kept.
    optimal = [f"ddpm sample {ckpt} sampler=ancestral variance=optimal"] if x0_mse_path(checkpoint).exists() else []
    report(directory, parts, facts, [f"ddpm denoise {ckpt}", *optimal])


# Samples ------------------------------------------------------------------------------------------------------------


def prepare_samples(cfg: DictConfig) -> tuple[Tensor, ImageData, tuple[str, Features], list[Measure]]:
    """Return the samples, the real images beside which they are judged, the features and the measures.

    Raises:
        UserError: see `run`.
    """
    data: ImageData = build(cfg.data if cfg.data is not None else mnist(cfg), ImageData)
    try:
        samples = read_samples(user_path(cfg.samples), data.image_shape)
        check_images("samples", samples, data.image_shape)
    except ValueError as error:
        default = cfg.data is None and user_path(cfg.samples).exists()
        hint = "\nWithout data=NAME, samples are compared with MNIST." if default else ""
        raise UserError(f"samples: {error}{hint}") from error
    features = sample_quality.build_features(cfg, data)
    if features is None:
        raise UserError(sample_quality.NO_FEATURES)
    sample_quality.check_data(data.ready())
    return samples, data, features, sample_quality.build_measures(cfg.measures)


def judge_samples(cfg: DictConfig) -> None:
    """Compare samples from a file or a folder with real images."""
    samples, data, features, measures = prepare_samples(cfg)
    if isinstance(features[1], Digits) and (doubt := doubts(samples)):
        display.console.print(doubt)
    origin = {"samples": user_path(cfg.samples), "num_samples": len(samples)}
    device = from_checkpoint.build_fabric(cfg.trainer).device
    judged = sample_quality.judge(cfg, Drawn(samples, origin), data, features, measures, device)
    directory = from_checkpoint.directory_for(cfg, None)
    make_results_folder(directory, device, None)
    report(directory, [judged], {"data": from_checkpoint.describe(data)}, [])


def mnist(cfg: DictConfig) -> DictConfig:
    """Return the config of all of MNIST, the default real digits."""
    data = compose("evaluate", ["data=mnist"]).data
    return OmegaConf.create({"paths": cfg.paths, "seed": cfg.seed, "data": data}).data


# Both ---------------------------------------------------------------------------------------------------------------


def report(directory: Path, parts: Sequence[Part], facts: Mapping[str, Any], next_commands: Sequence[str]) -> None:
    """Write metrics.json, the files of the parts, and both for TensorBoard; print the tables."""
    metrics = {name: value for part in parts for name, value in part.metrics().items()}
    facts = {**facts, **{name: value for part in parts for name, value in part.facts().items()}}
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
                pixels = np.asarray(picture.convert("RGB"))
            tensorboard.add_image(f"evaluate/{path.stem}", pixels, step, dataformats="HWC")
    write_json(directory / "metrics.json", {**metrics, **facts})

    for part in parts:
        for table in part.tables():
            display.console.print(table)
    display.console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    files = [file for part in parts for file in part.FILES]
    display.results(directory, ["metrics.json: these numbers", *files], next_commands)
