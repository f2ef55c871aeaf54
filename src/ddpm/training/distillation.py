"""Distillation: train a network to give the output of a trained model, with its guidance."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpm.diffusion import Autoguidance, ClassifierFree, GaussianDiffusion, Guidance, Objective
from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import Network, Timesteps
from ddpm.errors import UserError
from ddpm.runs import find_checkpoint
from ddpm.training.building import load_model
from ddpm.training.module import DDPM


class Distillation(Objective):
    """The mean over C, H, W of (output - target)², where the target is the guided output of a teacher, a trained model.

    Guidance needs two network evaluations at each timestep; the trained network, the student, needs one (Meng et al.
    2023, stage one, for one scale). With scale=1, the student learns the output of the teacher alone.

    The teacher is loaded when it is first used, so the student also works where its teacher is missing. The weights of
    the teacher are neither trained nor saved.

    Args:
        teacher: what `ckpt=` takes. Teacher and student must have the same schedule, prediction, images and classes.
        scale: scale of the guidance; 1 means none.
        weak: the weaker model of autoguidance; None means classifier-free guidance, which needs labels.
        interval: the first and the last timestep of guidance; None means all.

    Raises:
        ValueError: `scale` or `interval` is invalid, or `weak` has no effect.
        UserError: (when they are first used) a model is missing, damaged or not trusted.
    """

    def __init__(
        self, teacher: str, scale: float = 1.0, weak: str | None = None, interval: Sequence[int] | None = None
    ):
        guidance = ClassifierFree(scale, interval)  # checks both
        if weak is not None and not guidance.acts:
            raise ValueError("distillation: weak has no effect with scale=1.")
        self.ckpt, self.scale, self.weak, self.interval = teacher, scale, weak, interval

    def __call__(
        self, network: Network, diffusion: GaussianDiffusion, x0: Images, t: Timesteps, eps: Images, **condition: Any
    ) -> Float[Tensor, " B"]:
        x_t = diffusion.q_sample(x0, t, eps)
        teacher = self.teacher.ema.to(x0.device)
        with torch.no_grad():
            target = self.guidance(teacher, self.teacher.num_classes)(x_t, t, **condition).float()
        return (network(x_t, t, **condition).float() - target).square().mean(dim=(1, 2, 3))

    def check(self, model: DDPM) -> None:
        model.check_same_kind(self.teacher, "objective=guidance_distillation")
        self.teacher.check_condition(None if model.num_classes is None else [0], self.guidance)
        if self.teacher.label_dropout == 0 < model.label_dropout and model.num_classes is not None:
            raise UserError(
                "objective=guidance_distillation: the teacher was trained with label_dropout=0. Set "
                "module.label_dropout=0."
            )

    @cached_property
    def teacher(self) -> DDPM:
        return load_model(find_checkpoint(self.ckpt))

    @cached_property
    def guidance(self) -> Guidance:
        if self.weak is None:
            return ClassifierFree(self.scale, self.interval)
        return Autoguidance(load_model(find_checkpoint(self.weak)), self.scale, self.interval)
