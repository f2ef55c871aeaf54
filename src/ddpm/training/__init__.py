"""The LightningModule, its construction, the Trainer and the callbacks."""

from ddpm.training.building import build_model, load_model, load_weights
from ddpm.training.module import DDPM

__all__ = ["DDPM", "build_model", "load_model", "load_weights"]
