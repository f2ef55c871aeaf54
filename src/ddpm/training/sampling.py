"""`SamplingModel`, the part of `DDPM` that samples images."""

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ddpm.diffusion import Autoguidance, ClassifierFree, GaussianDiffusion, Guidance, Sampler, SDEDPMSolverPP
from ddpm.diffusion.process import Network
from ddpm.errors import UserError
from ddpm.seeding import ImageNoise, Stream


class SamplingModel(L.LightningModule):
    """A diffusion model that samples images with the averaged weights of its network. Its subclass sets the parts."""

    ema: AveragedModel
    """the averaged network"""
    diffusion: GaussianDiffusion
    image_shape: tuple[int, int, int]
    """(C, H, W)"""
    num_classes: int | None
    """number of classes; None if the model is unconditional"""
    label_dropout: float
    """the probability that a training image had no label"""

    def forward(self, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Return the output of the averaged network, [B, C, H, W]."""
        output: Tensor = self.ema(x_t, t, **condition)
        return output

    def sample(
        self,
        num_samples: int,
        sampler: Sampler | None = None,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int = 256,
        on_step: Callable[[int], None] | None = None,
        labels: int | Iterable[int] | Literal["all"] | None = None,
        guidance: float | Guidance | None = None,
    ) -> Tensor:
        """Return images sampled with the averaged weights, [N, C, H, W] in [-1, 1], on the model's device.

        Args:
            sampler: if None, SDE-DPM-Solver++, as in `ddpm sample`.
            steps: steps of that sampler, 20 if None; only without `sampler`, which has its own number. One network
                evaluation each, two with guidance.
            seed: image i depends only on (seed, i), up to rounding. If None, the seed is random.
            batch_size: images sampled at once.
            on_step: called after each step of a batch with its number of images.
            labels: a class, or classes that are repeated over the images, or "all"; None: no labels.
            guidance: a scale of classifier-free guidance, or a guidance.

        Raises:
            ValueError: `num_samples` or `batch_size` is below 1, or both `sampler` and `steps` are given.
            UserError: see `check_condition`.
        """
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"{num_samples=} and {batch_size=} must be at least 1.")
        if sampler is None:
            steps = min(20, self.diffusion.num_steps) if steps is None else steps
            sampler = SDEDPMSolverPP(steps, spacing="karras")
        elif steps is not None:
            raise ValueError("give sampler or steps, not both: a sampler has its own number of steps.")
        if guidance is not None and not isinstance(guidance, Guidance):
            try:
                guidance = ClassifierFree(float(guidance))
            except (TypeError, ValueError) as error:
                raise UserError(str(error)) from error
        classes = self.classes(labels)
        self.check_condition(classes, guidance, num_samples)
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        batches = torch.arange(num_samples).split(batch_size)
        return torch.cat(
            [self.sample_images(part.tolist(), sampler, seed, on_step, classes, guidance) for part in batches]
        )

    def classes(self, labels: Any) -> list[int] | None:
        """Return the labels that a user gives as None, as a number, as numbers of any kind, or as "all"."""
        if labels is None:
            return None
        if isinstance(labels, str) and labels == "all":
            return list(range(self.num_classes or 1))
        many = isinstance(labels, Iterable) and getattr(labels, "ndim", 1) > 0  # a tensor of no dimension is a number
        try:
            return [operator.index(label) for label in (labels if many else [labels])]
        except TypeError as error:
            raise UserError(f"labels must be classes, as in labels=[0,1], or all, not {labels!r}.") from error

    def check_condition(
        self, labels: Sequence[int] | None, guidance: Guidance | None = None, num_images: int | None = None
    ) -> None:
        """Check that the model can draw `num_images` images with these labels and this guidance.

        Raises:
            UserError: a label does not exist, or there are more labels than images; the model is unconditional, or it
                has not learnt to work without labels; the guidance does not fit the model.
        """
        self._check_labels(labels, num_images)
        if guidance is not None:
            self._check_interval(guidance)
            if guidance.acts:
                self._check_guidance(guidance, has_labels=labels is not None)

    def _check_labels(self, labels: Sequence[int] | None, num_images: int | None) -> None:
        if labels is None:
            if self.num_classes is not None and self.label_dropout == 0:
                raise UserError("labels are missing: the model was trained with label_dropout=0, so it needs them.")
        elif self.num_classes is None:
            raise UserError("labels: the model is unconditional. Train one with model.num_classes.")
        elif not labels:
            raise UserError("labels is empty: give classes, as in labels=[0,1].")
        elif absent := [label for label in labels if not 0 <= label < self.num_classes]:
            raise UserError(f"labels holds {absent[0]}, but the model has the classes 0 to {self.num_classes - 1}.")
        elif num_images is not None and len(labels) > num_images:
            raise UserError(f"labels holds {len(labels)} labels for {num_images} images: draw more images.")

    def _check_interval(self, guidance: Guidance) -> None:
        if guidance.interval is None:
            return
        interval, last = f"guidance: interval={list(guidance.interval)}", self.diffusion.num_steps - 1
        if guidance.interval[1] > last:
            raise UserError(f"{interval} goes beyond the last timestep, {last}.")
        if not guidance.acts:
            raise UserError(f"{interval} has no effect with scale=1, which is no guidance.")

    def _check_guidance(self, guidance: Guidance, has_labels: bool) -> None:
        if isinstance(guidance, ClassifierFree):
            if self.num_classes is None:
                raise UserError(
                    "guidance: the model is unconditional. Train one with model.num_classes, or use autoguidance."
                )
            if self.label_dropout == 0:
                raise UserError("guidance: the model was trained with label_dropout=0. Use autoguidance.")
            if not has_labels:
                raise UserError("guidance: classifier-free guidance needs labels, as in labels=all.")
        if isinstance(guidance, Autoguidance) and isinstance(guidance.weak, SamplingModel):
            self.check_same_kind(guidance.weak, "guidance")
            if not has_labels and guidance.weak.num_classes is not None and guidance.weak.label_dropout == 0:
                raise UserError("guidance: the weaker model was trained with label_dropout=0, so it needs labels.")

    def check_same_kind(self, other_model: "SamplingModel", use: str) -> None:
        """Raise a UserError, which names the `use`, unless the outputs of both models mean the same."""
        for name, own, other in (
            ("image shape", tuple(self.image_shape), tuple(other_model.image_shape)),
            ("number of classes", self.num_classes, other_model.num_classes),
            ("prediction", self.diffusion.prediction, other_model.diffusion.prediction),
            ("betas", self.diffusion.betas.tolist(), other_model.diffusion.betas.tolist()),
        ):
            if own != other:
                values = "" if name == "betas" else f": {own} and {other}"
                raise UserError(f"{use}: the two models differ in their {name}{values}. Use a model of the same kind.")

    def conditioned(self, labels: Tensor | None, guidance: Guidance | None = None) -> Network:
        """Return the averaged network, network(x_t, t), with the labels of a batch, int64 [B], and with guidance.

        Without labels, a class-conditional network gets the label "no label".
        """
        network: Network = self.ema if guidance is None else guidance(self.ema, self.num_classes)
        if labels is not None:
            return partial(network, labels=labels)
        if (no_label := self.num_classes) is not None:
            return lambda x_t, t: network(x_t, t, labels=torch.full_like(t, no_label))
        return network

    def check_sampler(self, sampler: Sampler, guidance: Guidance | None = None) -> int:
        """Return the number of steps that `sampler` takes with this model's diffusion process.

        Raises:
            UserError: the sampler's settings do not fit the process, for example more steps than timesteps; or the
                interval of the guidance has none of the sampler's timesteps.
        """
        try:
            timesteps = sampler.timesteps(self.diffusion)
        except ValueError as error:
            raise UserError(f"sampler: {error}") from error
        if guidance is not None and guidance.acts and not guidance.covers(timesteps).any():
            raise UserError(f"guidance: interval={list(guidance.interval or [])} has none of the sampler's timesteps.")
        return len(timesteps)

    def sample_images(
        self,
        indices: Sequence[int],
        sampler: Sampler,
        seed: int,
        on_step: Callable[[int], None] | None = None,
        labels: Sequence[int] | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Return the images of `sample` with the given indices, [len(indices), C, H, W]; arguments as there.

        Image i has the label `labels[i % len(labels)]`.
        """
        randn_like = ImageNoise(Stream.SAMPLING, seed, indices=indices)
        x_t = randn_like(torch.empty(len(indices), *self.image_shape, device=self.device))
        own = None if labels is None else torch.tensor([labels[i % len(labels)] for i in indices], device=self.device)
        for step in sampler.iterate(self.conditioned(own, guidance), self.diffusion, x_t, randn_like):
            x_t = step.x_prev
            if on_step:
                on_step(len(indices))
        return x_t.clamp(-1, 1)
