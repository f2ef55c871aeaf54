"""Denoising diffusion probabilistic models: train, sample, evaluate and look inside; see `ddpm --help`."""

__version__ = "0.1.0"
