"""Pictures of samples during training."""

from pathlib import Path

import lightning as L
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ddpm.data import pictures
from ddpm.diffusion import Sampler
from ddpm.seeding import ImageNoise, Stream
from ddpm.training.loggers import log_picture
from ddpm.training.module import DDPM

MAX_IMAGES = 10_000
"""of a grid"""


class SamplePictures(L.Callback):
    """Draws images after each validation, always from the same noise, so that the pictures of a run can be compared.

    Two pictures go to the loggers and, as PNG, to `directory`: a grid of samples, and the trajectories of a few
    samples in pairs of rows: x_t above, the predicted x_0 below. The grid of a class-conditional model has one row for
    each class.

    Args:
        directory: where the PNGs are written.
        sampler: a fast one, since it runs during training.
        num_samples: images in the grid, at most; with classes, equally many of each.
        num_trajectories: images whose trajectory is shown.
        num_timesteps: timesteps shown of a trajectory.
    """

    def __init__(
        self,
        directory: str | Path,
        sampler: Sampler,
        num_samples: int = 64,
        num_trajectories: int = 4,
        num_timesteps: int = 10,
    ):
        if not 1 <= num_samples <= MAX_IMAGES:
            raise ValueError(f"num_samples={num_samples} must be at least 1 and at most {MAX_IMAGES:,}.")
        if num_trajectories < 1 or num_timesteps < 1:
            raise ValueError(f"{num_trajectories=} and {num_timesteps=} must be at least 1.")
        self.directory = Path(directory)
        self.sampler = sampler
        self.num_samples = num_samples
        self.num_trajectories = num_trajectories
        self.num_timesteps = num_timesteps

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DDPM)
        if trainer.sanity_checking:
            return
        with trainer.precision_plugin.forward_context():
            samples, trajectories = self.draw(pl_module)  # in all processes: FSDP shares the weights out
        if not trainer.is_global_zero:
            return
        self.show(trainer, "samples", pictures.image_grid(samples, columns=self.per_class(pl_module)))
        self.show(trainer, "trajectories", pictures.image_grid(trajectories, columns=self.num_timesteps))

    def per_class(self, model: DDPM) -> int | None:
        """Return the number of images of each class; None if the model is unconditional."""
        return None if model.num_classes is None else max(1, self.num_samples // model.num_classes)

    def draw(self, model: DDPM) -> tuple[Tensor, Tensor]:
        """Return samples [N, C, H, W], and trajectories [2 · num_trajectories · num_timesteps, C, H, W] row by row."""
        number, labels, followed = self.num_samples, None, slice(self.num_trajectories)
        if (per_class := self.per_class(model)) is not None:
            assert model.num_classes is not None
            number = min(self.num_samples, per_class * model.num_classes)
            labels = torch.arange(number, device=model.device) // per_class
            followed = slice(0, per_class * self.num_trajectories, per_class)  # the first image of each class
        noise = ImageNoise(Stream.SAMPLING, 0, indices=range(number))
        x_T = noise(torch.empty(number, *model.image_shape, device=model.device))
        steps = list(self.sampler.iterate(model.conditioned(labels), model.diffusion, x_T, noise))
        shown = torch.linspace(0, len(steps) - 1, self.num_timesteps).round().long().tolist()
        pairs = [torch.stack([steps[i].x_t, steps[i].x0])[:, followed] for i in shown]
        return steps[-1].x_prev, rearrange(pairs, "t pair image c h w -> (image pair t) c h w")

    def show(self, trainer: L.Trainer, kind: str, picture: Image.Image) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        picture.save(self.directory / f"{kind}-step-{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            log_picture(logger, kind, picture, trainer.global_step - 1)  # where Lightning logs this validation
