"""Measures the variational bound of images, at some or all timesteps, and the x_0 error of the network."""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.data import to_model_range
from ddpm.devices import map_over_processes
from ddpm.diffusion import GaussianDiffusion, VLBTerms
from ddpm.diffusion.likelihood import vlb_terms_under
from ddpm.diffusion.process import Network
from ddpm.metrics.estimates import Curve, Estimate, bin_edges, standard_error
from ddpm.seeding import ImageNoise, Stream, evenly_spread, seed_at


class Bound(NamedTuple):
    """The terms of the bound for N images; each image has K timesteps of its own."""

    terms: VLBTerms
    """bits/dim, float64, on the CPU"""
    timesteps: Tensor
    """int64 [N, K]; all images together cover 1 … T-1 evenly"""
    num_steps: int
    """T"""

    def curve(self, edges: Tensor | None = None) -> Curve:
        """Return the KL divergence of one step over the timesteps, in bits/dim.

        Args:
            edges: edges of the bins; None chooses them from the number of divergences.
        """
        edges = bin_edges(self.num_steps, self.timesteps.numel()) if edges is None else edges
        return Curve.of(self.timesteps, self.terms.kl, edges)

    def summary(self) -> dict[str, Estimate]:
        """Return the bound ("total") and its three terms, in bits/dim; "kl" sums the divergences over t ≥ 1."""
        prior, divergences, reconstruction = self.terms
        kl, deviation = self.curve().sum(self.timesteps, divergences)
        total = prior.mean().item() + kl + reconstruction.mean().item()
        return {
            "prior": Estimate.of(prior),
            "kl": Estimate(kl, standard_error(deviation).item()),
            "reconstruction": Estimate.of(reconstruction),
            "total": Estimate(total, standard_error(prior + deviation + reconstruction).item()),
        }


def stratified_timesteps(num_images: int, per_image: int, num_steps: int, seed: int, first: int = 1) -> Tensor:
    """Return K stratified timesteps from `first` … T-1 for each image, int64 [N, K].

    The range is cut into K equal parts, and each image gets one timestep in each part. The position inside a part
    follows the golden ratio over the images, so that all images together cover the timesteps evenly. With
    K = T - `first` each image gets every timestep. With N·K ≥ 4·T every timestep occurs.
    """
    shift = seed_at(Stream.EVALUATION, seed) / 2**64
    place = evenly_spread(torch.arange(num_images), shift)
    position = (torch.arange(per_image) + place[:, None]) / per_image
    return first + (position * (num_steps - first)).long().clamp(max=num_steps - first - 1)


@torch.no_grad()
def measure_bounds(
    network: Network,
    diffusions: Mapping[str, GaussianDiffusion],
    images: Tensor,
    per_image: int,
    seed: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    labels: Tensor | None = None,
) -> dict[str, Bound]:
    """Return the bound of uint8 images [N, C, H, W] under each of `diffusions`, which differ only in their variance.

    Each image costs K + 1 network evaluations, where K = `per_image` is its number of timesteps t ≥ 1. The timesteps
    and the noise of image i are functions of (seed, i). The processes share the batches. Up to rounding, the results
    depend neither on the batch size nor on the number of processes.

    Args:
        labels: of the images, int64 [N], for a network that takes them.
    """
    num_steps = next(iter(diffusions.values())).num_steps
    timesteps = stratified_timesteps(len(images), per_image, num_steps, seed)

    def terms_of(indices: Tensor) -> list[list[Tensor]]:
        """Return the terms under each diffusion."""
        x0, noise = _images_and_noise(images, indices, seed, device)
        own = _with_labels(network, labels, indices, device)
        terms = vlb_terms_under(own, list(diffusions.values()), x0, timesteps[indices], noise)
        return [[part.cpu().double() for part in parts] for parts in terms]

    batches = map_over_processes(terms_of, torch.arange(len(images)).split(batch_size))
    return {
        name: Bound(VLBTerms(*(torch.cat(parts) for parts in zip(*of_one, strict=True))), timesteps, num_steps)
        for name, of_one in zip(diffusions, zip(*batches, strict=True), strict=True)
    }


def timesteps_for_x0_mse(num_images: int, draws: int, num_steps: int, seed: int) -> Tensor:
    """Return timesteps from 0 … T-1 for each image, int64 [N, K]; about `draws` images or more have each timestep.

    K grows with `draws` until each image has every timestep.
    """
    per_image = min(math.ceil(draws * num_steps / num_images), num_steps)
    return stratified_timesteps(num_images, per_image, num_steps, seed, first=0)


@torch.no_grad()
def measure_x0_mse(
    network: Network,
    diffusion: GaussianDiffusion,
    images: Tensor,
    timesteps: Tensor,
    seed: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    labels: Tensor | None = None,
) -> Curve:
    """Return the mean squared error of the x_0 that the reverse step uses, with one bin for each timestep 0 … T-1.

    Args:
        images: uint8 [N, C, H, W].
        timesteps: int64 [N, K]; every timestep must occur.
        labels: of the images, int64 [N], for a network that takes them.
    """

    def errors_of(indices: Tensor) -> Tensor:
        """Return the errors of a batch, [B, K]."""
        x0, noise = _images_and_noise(images, indices, seed, device)
        own = _with_labels(network, labels, indices, device)
        errors = []
        for t in timesteps[indices].to(device).unbind(dim=1):
            x_t = diffusion.q_sample(x0, t, noise(x0))
            _, _, predicted = diffusion.p_mean_variance(own(x_t, t), x_t, t)
            errors.append((predicted - x0).square().mean(dim=(1, 2, 3)).cpu().double())
        return torch.stack(errors, dim=1)

    batches = map_over_processes(errors_of, torch.arange(len(images)).split(batch_size))
    return Curve.of(timesteps, torch.cat(batches), torch.arange(diffusion.num_steps + 1))


def _with_labels(network: Network, labels: Tensor | None, indices: Tensor, device: torch.device | str) -> Network:
    """Return the network, network(x_t, t), with the labels of a batch if there are labels."""
    return network if labels is None else partial(network, labels=labels[indices].to(device))


def _images_and_noise(
    images: Tensor, indices: Tensor, seed: int, device: torch.device | str
) -> tuple[Tensor, ImageNoise]:
    """Return x_0 [B, C, H, W] in [-1, 1], and its noise; the noise of image i is a function of (seed, i)."""
    noise = ImageNoise(Stream.EVALUATION, seed, indices=indices.tolist())
    return to_model_range(images[indices].to(device)), noise
