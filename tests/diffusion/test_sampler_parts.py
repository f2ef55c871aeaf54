"""A sampler that makes a part of its steps."""

import pytest
import torch
from closed_forms import seeded_randn_like
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.process import GaussianDiffusion
from ddpm.diffusion.samplers import DDIM, Ancestral, DPMSolverPP, Sampler, SDEDPMSolverPP


def network(x_t: Tensor, t: Tensor) -> Tensor:
    return 0.6 * x_t + 0.5 * torch.sin(2 * x_t)


@pytest.mark.parametrize("sampler", [Ancestral(9), DDIM(9), DDIM(9, eta=0.5), DPMSolverPP(9, 1), SDEDPMSolverPP(9, 1)])
def test_sampling_in_parts_equals_sampling_at_once(sampler: Sampler) -> None:
    """For samplers that use no earlier predictions."""
    diffusion = GaussianDiffusion(schedules.linear(60))
    x_T = seeded_randn_like(0)(torch.empty(4, 1, 3, 3))
    whole = sampler(network, diffusion, x_T, seeded_randn_like(1))
    randn_like, x = seeded_randn_like(1), x_T
    timesteps = sampler.timesteps(diffusion).tolist()
    for part in (slice(7, None), slice(6, 7), slice(0, 6)):
        steps = list(sampler.iterate(network, diffusion, x, randn_like, part))
        assert [step.t for step in steps] == timesteps[part][::-1]
        x = steps[-1].x_prev
    assert torch.equal(x, whole)
    assert torch.equal(sampler(network, diffusion, x_T, part=slice(0, 0)), x_T)


@pytest.mark.parametrize("make", [DPMSolverPP, SDEDPMSolverPP])
def test_a_part_starts_without_earlier_predictions(make: type[DPMSolverPP]) -> None:
    diffusion = GaussianDiffusion(schedules.linear(60))
    x = seeded_randn_like(0)(torch.empty(4, 1, 3, 3))
    second, first = make(9, 2), make(9, 1)
    for part, equal in ((slice(4, 5), True), (slice(4, 6), False)):
        one, other = (sampler(network, diffusion, x, seeded_randn_like(1), part) for sampler in (second, first))
        assert torch.allclose(one, other, atol=1e-3) == equal
