"""The x_0 error of a checkpoint, which gives its optimal variance; measured once and stored beside the checkpoint."""

import torch
from omegaconf import DictConfig
from torch import Tensor

from ddpm.commands import display
from ddpm.commands.from_checkpoint import Loaded, describe, labels_of, name_of_weights
from ddpm.commands.progress import Evaluations
from ddpm.commands.variance import x0_mse_key, x0_mse_path
from ddpm.data import ImageData
from ddpm.errors import UserError
from ddpm.metrics.bound import measure_x0_mse, timesteps_for_x0_mse
from ddpm.runs import write_json
from ddpm.runs.files import read_json

MIN_DRAWS = 4  # with fewer, a timestep may not occur


def check_draws(cfg: DictConfig) -> None:
    """Raise a UserError if the number of draws is too small."""
    draws = cfg.evaluate.x0_mse_draws
    if draws < MIN_DRAWS:
        raise UserError(f"evaluate.x0_mse_draws={draws}: each timestep needs at least {MIN_DRAWS}.")


def x0_mse_of(cfg: DictConfig, loaded: Loaded, data: ImageData, progress: Evaluations) -> Tensor:
    """Return the mean squared x_0 error of the network on validation images at each timestep, float64 [T].

    The stored error beside the checkpoint is used if it was measured with the settings in `cfg`, or with more images.
    Otherwise the error is measured, and stored if the images are from the data set of the model.
    """
    diffusion, images, draws = loaded.model.diffusion, data.split("validation").images, cfg.evaluate.x0_mse_draws
    if cfg.num_images is not None:
        images = spread(images, max(cfg.num_images, MIN_DRAWS))
    path = x0_mse_path(loaded.checkpoint)
    facts = x0_mse_key(loaded.checkpoint, diffusion) | {
        "data": describe(data),
        "draws": draws,
        "seed": cfg.seed,
        "weights": name_of_weights(cfg),
        "precision": loaded.fabric.strategy.precision.precision,
    }
    stored = read_json(path)
    if "x0_mse" in stored and stored.items() >= facts.items() and stored["images"] >= len(images):
        display.console.print(f"The optimal variance follows from the x_0 error in {path}, measured before.")
        return torch.tensor(stored["x0_mse"], dtype=torch.float64)

    timesteps = timesteps_for_x0_mse(len(images), draws, diffusion.num_steps, cfg.seed)
    network = progress.count(loaded.network, "x_0 error, validation", timesteps.numel())
    device = loaded.fabric.device
    labels = labels_of(data, "validation", loaded.model)
    labels = None if labels is None else spread(labels, len(images))
    curve = measure_x0_mse(network, diffusion, images, timesteps, cfg.seed, cfg.batch_size, device, labels)
    kept = f"is kept in {path}, for variance=optimal"
    if cfg.data is not None:
        kept = "is not kept, because data= names other images than the model's own"
    elif cfg.ema.length is not None:
        kept = "is not kept, because ema.length gives other weights than the checkpoint's"
    elif loaded.fabric.is_global_zero:
        try:
            write_json(path, facts | {"images": len(images), "x0_mse": curve.mean, "se": curve.se, "n": curve.n})
        except OSError as error:
            kept = f"cannot be kept, so variance=optimal is not available to other commands: {path}: {error.strerror}"
    display.console.print(f"The x_0 error at each timestep {kept}.")
    return curve.mean


def spread(images: Tensor, at_most: int) -> Tensor:
    """Return at most `at_most` images, evenly spaced from first to last, because data may be sorted by class."""
    number = min(at_most, len(images))
    return images[torch.linspace(0, len(images) - 1, number).round().long()]
