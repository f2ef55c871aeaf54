"""The LightningModule, its construction, the Trainer and the callbacks."""

from ddpm.training.building import build_model, load_model
from ddpm.training.module import DDPM
from ddpm.training.weights import load_weights

__all__ = ["DDPM", "build_model", "load_model", "load_weights"]
