"""Interpolation, inpainting and SDEdit, on data whose optimal denoiser is known."""

import math
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from closed_forms import Chain, GaussianData, MixtureData, seeded_randn_like
from torch import Tensor

from ddpm.diffusion import editing, schedules
from ddpm.diffusion.process import GaussianDiffusion, Network
from ddpm.diffusion.samplers import DDIM, Ancestral, DPMSolverPP, Sampler, SDEDPMSolverPP

GAUSSIAN = GaussianData(mean=0.3, std=0.4)
MIXTURE = MixtureData(
    weights=torch.tensor([0.2, 0.3, 0.5]).double(),
    means=torch.tensor([[-0.6, 0.6, 0.0], [-0.5, -0.5, 0.7]]).double().view(1, 1, 2, 3),
    std=0.1,
)


def case(data: Any, num_steps: int, **options: Any) -> tuple[Network, GaussianDiffusion]:
    diffusion = GaussianDiffusion(schedules.linear(num_steps), **options)
    return Chain.of(diffusion.alpha_bars).network("epsilon", data.best_x0), diffusion


def images_of_the_mixture(number: int) -> Tensor:
    draws = torch.Generator().manual_seed(5)
    chosen = torch.multinomial(MIXTURE.weights, number, replacement=True, generator=draws)
    means = MIXTURE.means[..., chosen].permute(3, 0, 1, 2)
    return (means + MIXTURE.std * torch.randn(means.shape, generator=draws).double()).float()


def test_encoding_gaussian_data_gives_the_exact_ode_solution() -> None:
    """The ODE keeps (x_t - mean)/std of the marginal. It starts at the image with the noise of t = 0."""
    network, diffusion = case(GAUSSIAN, 1000, clip_x0=False)
    x0 = torch.linspace(-1, 1, 9).view(1, 1, 3, 3)
    encoded = editing.encode(network, diffusion, DDIM(1000), x0, seeded_randn_like(0))
    noised = diffusion.q_sample(x0, torch.tensor([0]), seeded_randn_like(0)(x0)).double()
    (mean_0, variance_0), (mean_T, variance_T) = (GAUSSIAN.marginal(diffusion.alpha_bars[t]) for t in (0, -1))
    expected = mean_T + (variance_T / variance_0).sqrt() * (noised - mean_0)
    torch.testing.assert_close(encoded.double(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(("make", "clip_x0"), [(DDIM, True), (DPMSolverPP, False)])
def test_more_steps_give_a_smaller_round_trip_error_of_encoding(make: type[Sampler], clip_x0: bool) -> None:
    network, diffusion = case(MIXTURE, 1000, clip_x0=clip_x0)
    x0 = images_of_the_mixture(16)
    errors = []
    for steps in (20, 80, 320):
        encoded = editing.encode(network, diffusion, make(steps), x0, seeded_randn_like(0))
        errors.append((make(steps)(network, diffusion, encoded) - x0).abs().max().item())
    assert errors[0] > 2 * errors[1]
    assert errors[1] > errors[2]
    assert errors[2] < 0.05  # three standard deviations of the noise of t = 0 are 0.03


def test_encoding_calls_the_network_once_between_two_timesteps() -> None:
    diffusion = GaussianDiffusion(schedules.linear(100))
    called = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        called.append(t.tolist())
        return torch.zeros_like(x_t)

    sampler = DDIM(5)
    editing.encode(network, diffusion, sampler, torch.zeros(2, 1, 3, 3), seeded_randn_like(0))
    assert called == [[t, t] for t in sampler.timesteps(diffusion).tolist()[:-1]]


@pytest.mark.parametrize("sampler", [Ancestral(5), DDIM(5, eta=0.1), SDEDPMSolverPP(5)])
def test_encoding_refuses_samplers_that_draw_noise(sampler: Sampler) -> None:
    network, diffusion = case(GAUSSIAN, 100)
    with pytest.raises(ValueError, match="deterministic sampler: take ddim with eta=0"):
        editing.encode(network, diffusion, sampler, torch.zeros(1, 1, 3, 3), seeded_randn_like(0))


def test_slerp_has_constant_speed_on_the_circle() -> None:
    first, second = torch.zeros(2, 5, 1, 1, 3)
    first[:, 0, 0, 0] = 2
    second[:, 0, 0, 1] = 2
    fraction = torch.linspace(0, 1, 5)
    between = editing.slerp(first, second, fraction)[:, 0, 0]
    angle = fraction * math.pi / 2
    torch.testing.assert_close(between, 2 * torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1))


def test_slerp_of_two_equal_images_is_that_image() -> None:
    image = seeded_randn_like(0)(torch.empty(3, 1, 8, 8))
    torch.testing.assert_close(editing.slerp(image, image.clone(), torch.tensor([0, 0.3, 1])), image)


def test_slerp_keeps_unit_variance() -> None:
    first, second = seeded_randn_like(0)(torch.empty(2, 1, 1, 100, 100))
    middle = editing.slerp(first, second, torch.tensor([0.5]))
    assert middle.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("steps", "jump", "repeats"), [(10, 3, 4), (10, 10, 2), (7, 20, 3), (5, 1, 1)])
def test_repaint_parts_repeats_each_group_of_steps(steps: int, jump: int, repeats: int) -> None:
    parts = [list(range(steps))[part] for part in editing.repaint_parts(steps, jump, repeats)]
    assert sorted(chain(*parts)) == sorted(list(range(steps)) * repeats)
    assert max(len(part) for part in parts) == min(jump, steps)
    for before, after in pairwise(parts):
        assert after in (before, list(range(after[0], before[0])))


def test_inpainting_is_algorithm_1_of_repaint() -> None:
    """The algorithm written out: combine known and sampled pixels after each step, and jump back.

    A mixture of wide modes, because narrow ones would make the result forget the steps before.
    """
    network, diffusion = case(MIXTURE._replace(std=0.7), 30, clip_x0=False)
    x0, missing = images_of_the_mixture(4), torch.tensor([[True, False]])
    jump, repeats = 10, 2
    inpainted = editing.inpaint(network, diffusion, Ancestral(), x0, missing, seeded_randn_like(3), jump, repeats)

    randn_like = seeded_randn_like(3)
    x = randn_like(x0)
    for low in (20, 10, 0):
        for repeat in range(repeats):
            if repeat > 0:
                before = diffusion.alpha_bars[low - 1] if low else torch.ones(()).double()
                alpha_bar = (diffusion.alpha_bars[low + jump - 1] / before).float()
                x = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * randn_like(x)
            for t in reversed(range(low, low + jump)):
                batch_t = torch.full((4,), t)
                x = torch.where(missing, x, diffusion.q_sample(x0, batch_t, randn_like(x0)))
                output = network(x, batch_t)
                x = diffusion.p_sample(output, x, batch_t, randn_like(x) if t else torch.zeros_like(x))
    torch.testing.assert_close(inpainted, torch.where(missing, x, x0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [Ancestral(12), DDIM(12), DPMSolverPP(12, 3), SDEDPMSolverPP(12)])
@pytest.mark.parametrize("clip_x0", [True, False])
def test_known_pixels_stay_bit_equal(sampler: Sampler, clip_x0: bool) -> None:
    network, diffusion = case(GAUSSIAN, 100, clip_x0=clip_x0)
    x0 = seeded_randn_like(0)(torch.empty(3, 2, 8, 6)).clamp(-1, 1)
    missing = editing.region("top", 8, 6)
    inpainted = editing.inpaint(network, diffusion, sampler, x0, missing, seeded_randn_like(1), jump=4, repeats=2)
    assert torch.equal(inpainted[:, :, 4:], x0[:, :, 4:])
    assert (inpainted[:, :, :4] - x0[:, :, :4]).abs().mean() > 0.1
    assert inpainted.isfinite().all()


def test_resampling_gives_the_missing_pixel_its_conditional_distribution() -> None:
    """Two pixels of correlation ρ: given that the first is 0.8, the second has the mean 0.8 ρ."""
    rho, std = 0.9, 0.5
    covariance = std**2 * torch.tensor([[1, rho], [rho, 1]]).double()

    def best_x0(x_t: Tensor, ab: Tensor) -> Tensor:
        noisy = ab[0].item() * covariance + (1 - ab[0].item()) * torch.eye(2).double()
        return x_t @ (ab[0].sqrt().item() * torch.linalg.solve(noisy, covariance))

    diffusion = GaussianDiffusion(schedules.linear(100), clip_x0=False)
    network = Chain.of(diffusion.alpha_bars).network("epsilon", best_x0)
    x0 = torch.full((2000, 1, 1, 2), 0.8)
    missing = torch.tensor([[False, True]])
    means = []
    for repeats in (1, 10):
        inpainted = editing.inpaint(network, diffusion, Ancestral(), x0, missing, seeded_randn_like(0), 5, repeats)
        means.append(inpainted[..., 1].mean().item())
    spread = std * math.sqrt(1 - rho**2)
    assert means[0] < 0.8 * rho - 0.2  # without resampling, the known pixel comes too late to change it
    assert means[1] == pytest.approx(0.8 * rho, abs=0.06)
    assert inpainted[..., 1].std().item() == pytest.approx(spread, rel=0.1)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(("jump", "repeats"), [(0, 1), (1, 0)])
def test_jump_and_repeats_below_1_are_refused(jump: int, repeats: int) -> None:
    network, diffusion = case(GAUSSIAN, 100)
    x0, missing = torch.zeros(1, 1, 2, 2), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least 1"):
        editing.inpaint(network, diffusion, DDIM(5), x0, missing, seeded_randn_like(0), jump, repeats)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (28, 20)])
def test_regions_split_the_image_evenly(height: int, width: int) -> None:
    parts = {name: editing.region(name, height, width) for name in editing.REGIONS}
    assert torch.equal(parts["left"], parts["right"].flip(1))
    assert torch.equal(parts["top"], parts["bottom"].flip(0))
    assert parts["left"].sum() == height * (width // 2)
    assert parts["top"].sum() == (height // 2) * width
    assert parts["left"][0, 0]
    assert parts["top"][0, 0]
    center = parts["center"]
    assert torch.equal(center, center.flip(0))
    assert torch.equal(center, center.flip(1))
    assert center[height // 2, width // 2]
    assert [int(center.any(dim=dim).sum()) for dim in (1, 0)] == {8: [4, 4], 5: [3, 3], 28: [14, 10]}[height]


def test_an_unknown_region_is_refused() -> None:
    with pytest.raises(ValueError, match="mask=middle is none of left, right, top, bottom, center"):
        editing.region("middle", 4, 4)


def test_full_strength_is_sampling_from_the_noised_image() -> None:
    network, diffusion = case(MIXTURE, 100)
    x0 = images_of_the_mixture(4)
    for sampler in (Ancestral(), DDIM(9), DPMSolverPP(9, spacing="trailing")):
        randn_like = seeded_randn_like(1)
        x_T = diffusion.q_sample(x0, torch.full((4,), 99), randn_like(x0))
        sampled = sampler(network, diffusion, x_T, randn_like)
        edited = editing.sdedit(network, diffusion, sampler, x0, 1.0, seeded_randn_like(1))
        assert torch.equal(edited, sampled)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(50), DPMSolverPP(50)])
def test_a_larger_strength_changes_the_image_more(sampler: Sampler) -> None:
    network, diffusion = case(MIXTURE, 500)
    x0 = images_of_the_mixture(200)
    distances = []
    for strength in (0.02, 0.2, 0.5, 1.0):
        edited = editing.sdedit(network, diffusion, sampler, x0, strength, seeded_randn_like(1))
        distances.append((edited - x0).square().mean().sqrt().item())
    assert distances == sorted(distances)
    assert distances[0] < 0.1
    assert distances[-1] > 0.5


@pytest.mark.parametrize(("strength", "asked_first"), [(0.5, 44), (0.45, 44), (0.44, 33), (1.0, 99), (0.01, 0)])
def test_sampling_starts_at_the_last_timestep_below_the_strength(strength: float, asked_first: int) -> None:
    diffusion = GaussianDiffusion(schedules.linear(100))
    sampler = DDIM(10)  # at t = 0, 11, 22, 33, 44, 55, …
    called: list[int] = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        called.append(int(t[0]))
        return torch.zeros_like(x_t)

    editing.sdedit(network, diffusion, sampler, torch.zeros(1, 1, 2, 2), strength, seeded_randn_like(0))
    assert called == list(range(asked_first, -1, -11))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        editing.steps_within(GaussianDiffusion(schedules.linear(100)), DDIM(5), strength)


def test_a_strength_below_the_first_timestep_is_refused() -> None:
    diffusion = GaussianDiffusion(schedules.linear(100))
    with pytest.raises(ValueError, match=r"whose first timestep is 19 of 100: use more"):
        editing.steps_within(diffusion, DDIM(5, spacing="trailing"), 0.19)
    assert editing.steps_within(diffusion, DDIM(5, spacing="trailing"), 0.2) == slice(1)
