"""A part of a sampler's walk."""

import pytest
import torch
from closed_forms import seeded_noise
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.process import GaussianDiffusion
from ddpm.diffusion.samplers import DDIM, Ancestral, DPMSolverPP, Sampler, SDEDPMSolverPP


def network(x_t: Tensor, t: Tensor) -> Tensor:
    return 0.6 * x_t + 0.5 * torch.sin(2 * x_t)


@pytest.mark.parametrize("sampler", [Ancestral(9), DDIM(9), DDIM(9, eta=0.5), DPMSolverPP(9, 1), SDEDPMSolverPP(9, 1)])
def test_a_walk_can_be_made_in_parts(sampler: Sampler) -> None:
    """Of samplers that do not look back on earlier steps."""
    diffusion = GaussianDiffusion(schedules.linear(60))
    x_T = seeded_noise(0)(torch.empty(4, 1, 3, 3))
    whole = sampler(network, diffusion, x_T, seeded_noise(1))
    noise, x = seeded_noise(1), x_T
    kept = sampler.timesteps(diffusion).tolist()
    for part in (slice(7, None), slice(6, 7), slice(0, 6)):
        steps = list(sampler.iterate(network, diffusion, x, noise, part))
        assert [step.t for step in steps] == kept[part][::-1]
        x = steps[-1].x_t
    assert torch.equal(x, whole)
    assert torch.equal(sampler(network, diffusion, x_T, part=slice(0, 0)), x_T)


@pytest.mark.parametrize("make", [DPMSolverPP, SDEDPMSolverPP])
def test_a_part_of_a_walk_begins_without_what_came_before(make: type[DPMSolverPP]) -> None:
    diffusion = GaussianDiffusion(schedules.linear(60))
    x = seeded_noise(0)(torch.empty(4, 1, 3, 3))
    second, first = make(9, 2), make(9, 1)
    for part, equal in ((slice(4, 5), True), (slice(4, 6), False)):
        one, other = (sampler(network, diffusion, x, seeded_noise(1), part) for sampler in (second, first))
        assert torch.allclose(one, other, atol=1e-3) == equal
