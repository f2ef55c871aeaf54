"""The modes of `ddpm sample` that start from images: interpolation, inpainting, partial noise."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Sampler, editing
from ddpm.diffusion.process import Network
from ddpm.seeding import ImageNoise, Stream


class Chain(NamedTuple):
    """The network, the diffusion and the sampler of an edit."""

    network: Network
    """network(x_t, t, labels=…); without `labels` where the chain has none"""
    diffusion: GaussianDiffusion
    sampler: Sampler
    labels: Tensor | None = None
    """of the input images, int64 [N]"""

    def of(self, images: Tensor) -> tuple[Network, GaussianDiffusion, Sampler]:
        """Return network(x_t, t), diffusion and sampler for a batch.

        Args:
            images: for each row of the batch, the index of the input image whose label it has, int64 [B].
        """
        network = self.network if self.labels is None else partial(self.network, labels=self.labels[images])
        return network, self.diffusion, self.sampler


Columns = Mapping[str, Tensor]
"""columns by title: images [R, C, H, W] in [-1, 1]"""


class EditResult(NamedTuple):
    """R rows of edited images, with the columns of input images before and after them."""

    before: Columns
    images: Tensor
    """[R, num_samples, C, H, W]"""
    titles: Sequence[str]
    """titles of the columns of `images`"""
    after: Columns

    def groups(self) -> list[tuple[Sequence[str], Tensor]]:
        """Return groups of columns from left to right: titles, and images [R, columns, C, H, W]."""
        before, after = (
            [(list(columns), torch.stack(list(columns.values()), dim=1))] if columns else []
            for columns in (self.before, self.after)
        )
        return [*before, (self.titles, self.images), *after]


class Mode(ABC):
    """Makes a row of images from each input image. To add a mode, write a subclass and a YAML file in `conf/mode/`."""

    @abstractmethod
    def evaluations(self, chain: Chain, num_images: int, num_samples: int) -> int:
        """Return the network evaluations for `num_samples` images a row; a batch of B images counts B.

        Raises:
            ValueError: settings that do not fit together.
        """

    @abstractmethod
    def __call__(self, chain: Chain, images: Tensor, num_samples: int, seed: int) -> EditResult:
        """Return the edits of `images` [N, C, H, W] in [-1, 1]. The noise of result n is that of (seed, n)."""

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Return the captions of the rows; `indices` are those of the images in the test set."""
        return [f"image {index}" for index in indices]


class Interpolate(Mode):
    """Interpolates between the encodings of each image and the next; both ends are decoded too."""

    def evaluations(self, chain: Chain, num_images: int, num_samples: int) -> int:
        if num_images < 2 or num_samples < 2:
            raise ValueError("interpolation needs two images or more, and num_samples of at least 2: the ends count.")
        editing.check_deterministic(chain.diffusion, chain.sampler)
        steps = len(chain.sampler.timesteps(chain.diffusion))
        return num_images * (steps - 1) + (num_images - 1) * num_samples * steps

    def __call__(self, chain: Chain, images: Tensor, num_samples: int, seed: int) -> EditResult:
        same_noise = ImageNoise(Stream.SAMPLING, seed, indices=[0] * len(images))
        index = torch.arange(len(images), device=images.device)
        encoded = editing.encode(*chain.of(index), images, same_noise)
        fractions = torch.linspace(0, 1, num_samples, device=images.device)
        first, second = (each.repeat_interleave(num_samples, dim=0) for each in (encoded[:-1], encoded[1:]))
        x_T = editing.slerp(first, second, fractions.repeat(len(images) - 1))
        nearer = (index[:-1, None] + (fractions >= 0.5)).flatten()  # the label is that of the nearer end
        network, diffusion, sampler = chain.of(nearer)
        made = sampler(network, diffusion, x_T).unflatten(0, (-1, num_samples))
        titles = [f"{fraction:.3g}" for fraction in fractions.tolist()]
        return EditResult({"from": images[:-1]}, made, titles, {"to": images[1:]})

    def captions(self, indices: Sequence[int]) -> list[str]:
        return [f"image {first} to {second}" for first, second in pairwise(indices)]


class Inpaint(Mode):
    """Makes a region of each image anew.

    Args:
        mask: the region, one of `editing.REGIONS`.
        jump, repeats: see `editing.repaint_parts`.
    """

    def __init__(self, mask: str, jump: int, repeats: int):
        editing.region(mask, 1, 1)
        self.mask = mask
        self.jump = jump
        self.repeats = repeats

    def evaluations(self, chain: Chain, num_images: int, num_samples: int) -> int:
        steps = len(chain.sampler.timesteps(chain.diffusion))
        parts = editing.repaint_parts(steps, self.jump, self.repeats)
        return num_images * num_samples * sum(part.stop - part.start for part in parts)

    def __call__(self, chain: Chain, images: Tensor, num_samples: int, seed: int) -> EditResult:
        missing = editing.region(self.mask, *images.shape[-2:]).to(images.device)
        x0 = images.repeat_interleave(num_samples, dim=0)
        noise = ImageNoise(Stream.SAMPLING, seed, indices=range(len(x0)))
        made = editing.inpaint(*chain.of(_rows(images, num_samples)), x0, missing, noise, self.jump, self.repeats)
        return _numbered({"image": images, "known": images.masked_fill(missing, 0)}, made)


class SDEdit(Mode):
    """Adds noise to images up to a timestep, and runs the reverse chain from there.

    Args:
        strength: share of the chain that the images are noised for.
    """

    def __init__(self, strength: float):
        self.strength = float(strength)

    def evaluations(self, chain: Chain, num_images: int, num_samples: int) -> int:
        steps = editing.steps_within(chain.diffusion, chain.sampler, self.strength)
        return num_images * num_samples * steps.stop

    def __call__(self, chain: Chain, images: Tensor, num_samples: int, seed: int) -> EditResult:
        x0 = images.repeat_interleave(num_samples, dim=0)
        noise = ImageNoise(Stream.SAMPLING, seed, indices=range(len(x0)))
        made = editing.sdedit(*chain.of(_rows(images, num_samples)), x0, self.strength, noise)

        part = editing.steps_within(chain.diffusion, chain.sampler, self.strength)
        t = chain.sampler.timesteps(chain.diffusion)[part][-1].to(images.device)
        first_noise = ImageNoise(Stream.SAMPLING, seed, indices=range(0, len(x0), num_samples))(images)
        noised = chain.diffusion.q_sample(images, t.expand(len(images)), first_noise)  # the start of the first edit
        return _numbered({"image": images, f"t = {t}": noised}, made)


def _rows(images: Tensor, num_samples: int) -> Tensor:
    """Return the index of the image that each result is made from, int64 [N · num_samples]."""
    return torch.arange(len(images), device=images.device).repeat_interleave(num_samples)


def _numbered(before: Columns, made: Tensor) -> EditResult:
    """Return the result with numbered columns; `made` is row by row, [R · num_samples, C, H, W]."""
    rows = len(next(iter(before.values())))
    made = made.unflatten(0, (rows, -1))
    return EditResult(before, made, [str(i + 1) for i in range(made.shape[1])], {})
