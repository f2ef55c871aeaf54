"""The variance of a model's reverse steps, with the stored x_0 error that the optimal variance needs."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.config import override
from ddpm.diffusion import Ancestral, GaussianDiffusion, Sampler
from ddpm.diffusion.process import Variance
from ddpm.errors import UserError
from ddpm.runs.files import read_json
from ddpm.training.module import DDPM


def set_variance(model: DDPM, variance: Variance | None, checkpoint: Path, sampler: Sampler) -> None:
    """Set the reverse variance of the model. None keeps the variance that the checkpoint has.

    Raises:
        UserError: the sampler does not use the variance, or the variance is unknown, or it is `optimal` and this
            checkpoint's x_0 error has not been measured.
    """
    if variance is not None:
        if not isinstance(sampler, Ancestral):
            raise UserError(f"variance={variance} needs sampler=ancestral: other samplers have no such variance.")
        x0_mse = stored_x0_mse(checkpoint, model.diffusion) if variance == "optimal" else None
        model.diffusion = with_variance(model.diffusion, variance, x0_mse)


def with_variance(diffusion: GaussianDiffusion, variance: Variance, x0_mse: Tensor | None) -> GaussianDiffusion:
    """Return the same diffusion process, on the same device, with another variance of the reverse steps.

    Raises:
        UserError: the variance is unknown, or `x0_mse` does not fit it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading the model has already warned about the schedule
        try:
            other = GaussianDiffusion(diffusion.betas, diffusion.prediction, variance, x0_mse, diffusion.clip_x0)
        except ValueError as error:
            raise UserError(str(error)) from error
    return other.to(next(diffusion.buffers()).device)


def x0_mse_path(checkpoint: Path) -> Path:
    """Return the file in which `ddpm evaluate` stores a checkpoint's x_0 error: `best.x0_mse.json` for `best.ckpt`."""
    return checkpoint.with_suffix(".x0_mse.json")


def x0_mse_key(checkpoint: Path, diffusion: GaussianDiffusion) -> dict[str, Any]:
    """Return what a measured x_0 error depends on: the content of the checkpoint, and whether x_0 was clipped."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"checkpoint_sha256": digest, "clip_x0": diffusion.clip_x0}


def stored_x0_mse(checkpoint: Path, diffusion: GaussianDiffusion) -> Tensor:
    """Return the mean squared x_0 error at each timestep that `ddpm evaluate` measured for the checkpoint, float64 [T].

    Raises:
        UserError: the error was not measured, or the stored file is damaged or belongs to an earlier checkpoint.
    """
    path = x0_mse_path(checkpoint)
    stored = read_json(path)
    key = x0_mse_key(checkpoint, diffusion)
    if "x0_mse" not in stored:
        problem = f"{path} is damaged" if path.exists() else "it has not been measured"
    elif {name: stored.get(name) for name in key} != key:
        problem = f"{path} is of another checkpoint"
    else:
        x0_mse = stored["x0_mse"]
        is_number = isinstance(x0_mse, list) and all(type(value) in (int, float) and value >= 0 for value in x0_mse)
        if is_number and len(x0_mse) == diffusion.num_steps:
            return torch.tensor(x0_mse, dtype=torch.float64)
        problem = f"{path} is damaged"
    raise UserError(
        f"variance=optimal needs the model's x_0 error, but {problem}. "
        f"To measure it, first run `ddpm evaluate {override('ckpt', checkpoint)}`."
    )
