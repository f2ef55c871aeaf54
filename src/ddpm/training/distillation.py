"""Distillation: train a network to give the output of a trained model, with its guidance."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Float
from torch import Tensor

from ddpm.config import conf_dir, config_folders, trusted_targets
from ddpm.diffusion import Autoguidance, ClassifierFree, GaussianDiffusion, Guidance, Objective
from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import Network, Timesteps
from ddpm.errors import UserError
from ddpm.runs import find_checkpoint
from ddpm.training.building import load_model
from ddpm.training.module import DDPM


class Distillation(Objective):
    """The mean over C, H, W of (output - target)², where the target is the guided output of a trained model.

    Guidance needs two network evaluations at each timestep; the distilled network needs one (Meng et al. 2023, stage
    one, for one scale). With scale=1, it learns the output of the teacher alone.

    The teacher is loaded at the first call, so that a distilled model also works where its teacher is missing. Its
    weights are neither trained nor saved.

    Args:
        teacher: what `ckpt=` takes. Its schedule and its type of prediction are those of the trained model.
        scale: scale of the guidance; 1 means none.
        weak: the weaker model of autoguidance; None means classifier-free guidance, which needs labels.
        interval: the first and the last timestep of guidance; None means all.

    Raises:
        ValueError: `scale` or `interval` is invalid.
        UserError: (at the first call) a model is missing, damaged or not trusted, or the models do not fit together.
    """

    def __init__(
        self, teacher: str, scale: float = 1.0, weak: str | None = None, interval: Sequence[int] | None = None
    ):
        guidance = ClassifierFree(scale, interval)  # checks both
        if weak is not None and not guidance.acts:
            raise ValueError("distillation: weak has no effect with scale=1.")
        self.teacher, self.scale, self.weak, self.interval = teacher, scale, weak, interval

    def __call__(
        self, network: Network, diffusion: GaussianDiffusion, x0: Images, t: Timesteps, eps: Images, **condition: Any
    ) -> Float[Tensor, " B"]:
        teacher, guided = self.loaded
        own, other = diffusion, teacher.diffusion
        if own.prediction != other.prediction or not torch.equal(own.betas, other.betas):
            raise UserError(f"distillation: {self.teacher} has another schedule or type of prediction than the model.")
        teacher.to(x0.device)
        x_t = diffusion.q_sample(x0, t, eps)
        with torch.no_grad():
            target = guided(x_t, t, **condition).float()
        return (network(x_t, t, **condition).float() - target).square().mean(dim=(1, 2, 3))

    @cached_property
    def loaded(self) -> tuple[DDPM, Network]:
        """The teacher, and its guided network."""
        teacher = load(self.teacher)
        guidance: Guidance = ClassifierFree(self.scale, self.interval)
        if self.weak is not None:
            guidance = Autoguidance(load(self.weak), self.scale, self.interval)
        teacher.check_condition(None if teacher.num_classes is None else [0], guidance)
        return teacher, guidance(teacher, teacher.num_classes)


def load(ckpt: str) -> DDPM:
    """Return a trained model. Only targets of the project, and of the config folders of the command, are built."""
    folders = config_folders() if HydraConfig.initialized() else [conf_dir()]
    return load_model(find_checkpoint(ckpt), trusted=trusted_targets(folders))
