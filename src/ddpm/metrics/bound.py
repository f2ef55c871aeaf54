"""The variational bound of many images, each at a few timesteps or at all; and the network's x_0 error."""

import math
from collections.abc import Mapping
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
    """The bound's terms of N images, each at K timesteps of its own."""

    terms: VLBTerms
    """in bits/dim, float64 on the CPU"""
    timesteps: Tensor
    """int64 [N, K]; together they cover 1 … T-1 evenly"""
    num_steps: int
    """T"""

    def curve(self, edges: Tensor | None = None) -> Curve:
        """The KL of one step, in bits/dim, in bins that suit the number of divergences if none are given."""
        edges = bin_edges(self.num_steps, self.timesteps.numel()) if edges is None else edges
        return Curve.of(self.timesteps, self.terms.kl, edges)

    def summary(self) -> dict[str, Estimate]:
        """The bound ("total") and its three parts, in bits/dim; "kl" is the sum of the divergences over t ≥ 1."""
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
    """Timesteps of `first` … T-1 for each image, int64 [N, K]: one in each K-th of them, at a place in it that follows
    the golden ratio over the images, so that all images together cover every timestep evenly.

    With K = T - `first` each image has every timestep; with 4·T of them in all no timestep is left out.
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
) -> dict[str, Bound]:
    """The bound of uint8 images [N, C, H, W] under each of `diffusions`, which differ in their variance alone.

    The network is asked K + 1 times for each image, with K = `per_image` timesteps t ≥ 1. Image i's timesteps and
    noise are functions of (seed, i): the numbers do not depend on the batch size or, as the processes share the
    batches, on their number, to rounding.
    """
    num_steps = next(iter(diffusions.values())).num_steps
    timesteps = stratified_timesteps(len(images), per_image, num_steps, seed)

    def terms_of(indices: Tensor) -> list[list[Tensor]]:
        """For each of the diffusions, its terms."""
        x0, noise = _images_and_noise(images, indices, seed, device)
        terms = vlb_terms_under(network, list(diffusions.values()), x0, timesteps[indices], noise)
        return [[part.cpu().double() for part in parts] for parts in terms]

    batches = map_over_processes(terms_of, torch.arange(len(images)).split(batch_size))
    return {
        name: Bound(VLBTerms(*(torch.cat(parts) for parts in zip(*of_one, strict=True))), timesteps, num_steps)
        for name, of_one in zip(diffusions, zip(*batches, strict=True), strict=True)
    }


def timesteps_for_x0_mse(num_images: int, draws: int, num_steps: int, seed: int) -> Tensor:
    """Timesteps of 0 … T-1 for each image, int64 [N, K], with at least about `draws` images at every timestep.

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
) -> Curve:
    """The mean squared error of the x_0 that the reverse step uses, at each timestep 0 … T-1: a bin for each.

    Of uint8 images [N, C, H, W] at `timesteps` [N, K], all of which occur.
    """

    def errors_of(indices: Tensor) -> Tensor:
        """[B, K]"""
        x0, noise = _images_and_noise(images, indices, seed, device)
        errors = []
        for t in timesteps[indices].to(device).unbind(dim=1):
            x_t = diffusion.q_sample(x0, t, noise(x0))
            _, _, predicted = diffusion.p_mean_variance(network(x_t, t), x_t, t)
            errors.append((predicted - x0).square().mean(dim=(1, 2, 3)).cpu().double())
        return torch.stack(errors, dim=1)

    batches = map_over_processes(errors_of, torch.arange(len(images)).split(batch_size))
    return Curve.of(timesteps, torch.cat(batches), torch.arange(diffusion.num_steps + 1))


def _images_and_noise(
    images: Tensor, indices: Tensor, seed: int, device: torch.device | str
) -> tuple[Tensor, ImageNoise]:
    """x_0 [B, C, H, W] in [-1, 1], and their noise, a function of (seed, index) of each."""
    noise = ImageNoise(Stream.EVALUATION, seed, indices=indices.tolist())
    return to_model_range(images[indices].to(device)), noise
