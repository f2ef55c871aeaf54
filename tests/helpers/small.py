"""A model and data small enough to train within a test: images of 8×8, a chain of 20 steps."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from ddpm.data import ImageData, Split
from ddpm.diffusion import GaussianDiffusion, schedules
from ddpm.models import UNet
from ddpm.training.module import DDPM

NUM_STEPS = 20
IMAGE_SHAPE = (1, 8, 8)
NUM_CLASSES = 3  # of `Shades`
BATCHES = 5  # an epoch of `Shades` at batch size 8


class Shades(ImageData):
    """Random images: 40 for training, 12 for validation, 8 for testing."""

    def __init__(self, batch_size: int = 8, **kwargs: Any):
        super().__init__(batch_size, image_channels=1, image_size=8, **kwargs)

    def load(self) -> dict[str, Split]:
        images = torch.randint(256, (60, *IMAGE_SHAPE), generator=torch.Generator().manual_seed(0)).byte()
        parts = zip(("train", "validation", "test"), images.split([40, 12, 8]), strict=True)
        return {name: Split(part, torch.arange(len(part)) % NUM_CLASSES) for name, part in parts}


def small_unet(dropout: float = 0.0, num_classes: int | None = None) -> UNet:
    torch.manual_seed(0)
    return UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), dropout=dropout, num_classes=num_classes)


def small_model(network: nn.Module | None = None, num_steps: int = NUM_STEPS, **kwargs: Any) -> DDPM:
    return DDPM(network or small_unet(), GaussianDiffusion(schedules.cosine(num_steps)), IMAGE_SHAPE, **kwargs)


def trained_a_little(model: DDPM, std: float = 0.05) -> DDPM:
    """Add noise to all weights, those of the network and of the EMA. A new network outputs 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(std * torch.randn(weight.shape, generator=generator))
    return model


def quiet_trainer(callbacks: Iterable[L.Callback] = (), **kwargs: Any) -> L.Trainer:
    callbacks = list(callbacks)
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": -1,
            "logger": False,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "check_val_every_n_epoch": None,
            "callbacks": callbacks,
        }
        | kwargs  # type: ignore[arg-type]
    )


def fit(
    model: DDPM,
    max_steps: int,
    *callbacks: L.Callback,
    data: L.LightningDataModule | None = None,
    resume: Path | None = None,
    **kwargs: Any,
) -> L.Trainer:
    """Train on `Shades`; `kwargs` are the Trainer's."""
    trainer = quiet_trainer(callbacks, max_steps=max_steps, **kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # the EMA is always in eval mode
        trainer.fit(model, data or Shades(), ckpt_path=resume, weights_only=True)
    return trainer


class Rows(Logger):
    """Keeps what is logged: (step, metrics)."""

    name = version = "rows"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def of(self, name: str) -> dict[int, float]:
        """The values of one metric by step."""
        return {step: metrics[name] for step, metrics in self.rows if name in metrics}
