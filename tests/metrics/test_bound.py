import pytest
import small
import torch
from closed_forms import Chain, GaussianData
from torch import Tensor

from ddpm.data import to_uint8
from ddpm.diffusion import GaussianDiffusion, schedules
from ddpm.diffusion.process import VARIANCES, Network, Variance
from ddpm.metrics.bound import measure_bounds, measure_x0_mse, stratified_timesteps, timesteps_for_x0_mse

NUM_STEPS = 60


def random_images(number: int, seed: int, size: int = 6) -> Tensor:
    return torch.randint(256, (number, 1, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def rough_denoise(x_t, t):
    return 0.7 * x_t + t.view(-1, 1, 1, 1) / NUM_STEPS


@pytest.fixture(scope="module")
def diffusion():
    return GaussianDiffusion(schedules.linear(NUM_STEPS))


def test_timesteps_cover_the_chain_evenly():
    t = stratified_timesteps(num_images=1000, per_image=5, num_steps=101, seed=3)
    assert t.shape == (1000, 5)
    assert torch.equal((t - 1) // 20, torch.arange(5).expand(1000, 5))  # one in each fifth
    counts = torch.bincount(t.flatten(), minlength=101)
    assert counts[0] == 0
    assert len(counts) == 101
    assert (counts[1:] - 50).abs().max() <= 3  # independent draws would stray by about 20
    assert not torch.equal(t, stratified_timesteps(1000, 5, 101, seed=4))
    assert torch.equal(t[:10], stratified_timesteps(10, 5, 101, seed=3))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("num_steps", [2, 37, 1000])
def test_as_many_timesteps_as_steps_give_every_timestep(num_steps, first):
    t = stratified_timesteps(50, num_steps - first, num_steps, seed=0, first=first)
    assert torch.equal(t, torch.arange(first, num_steps).expand(50, -1))


@pytest.mark.parametrize("draws", [4, 20])
@pytest.mark.parametrize("num_steps", [30, 300, 1000])
@pytest.mark.parametrize("num_images", [30, 128, 1000, 5000])
def test_the_x0_error_has_draws_at_every_timestep(num_images, num_steps, draws):
    for seed in range(5):
        t = timesteps_for_x0_mse(num_images, draws, num_steps, seed)
        counts = torch.bincount(t.flatten(), minlength=num_steps)
        assert len(counts) == num_steps
        assert counts.min() >= draws / 2
        assert t.numel() < 2 * draws * num_steps + num_images


def test_few_images_get_all_timesteps():
    assert torch.equal(timesteps_for_x0_mse(3, 20, 50, seed=0), torch.arange(50).expand(3, -1))


def test_few_timesteps_give_the_bound_of_all_within_their_error(diffusion):
    """Each estimate has its own images; its z-score against the exact bound of many other images is standard normal."""
    exact = measure_bounds(rough_denoise, {"": diffusion}, random_images(1500, seed=99), NUM_STEPS - 1, seed=99)[""]
    assert torch.equal(exact.timesteps, torch.arange(1, NUM_STEPS).expand(1500, -1))
    truth = exact.summary()
    scores: dict[str, list[float]] = {name: [] for name in truth}
    for seed in range(40):
        rough = measure_bounds(rough_denoise, {"": diffusion}, random_images(300, seed), 4, seed)[""].summary()
        assert rough["total"].se < 0.05 * rough["total"].mean
        for name, value in rough.items():
            difference = value.minus(truth[name])
            scores[name].append(difference.mean / difference.se)
    for name in truth:
        z = torch.tensor(scores[name])
        assert z.mean().abs() < 4 / 40**0.5, name
        assert 0.7 < z.square().mean().sqrt() < 1.4, name


def test_the_parts_sum_to_the_bound(diffusion):
    bound = measure_bounds(rough_denoise, {"": diffusion}, random_images(20, seed=0), 3, seed=0)[""]
    summary = bound.summary()
    parts = [summary[name].mean for name in ("prior", "kl", "reconstruction")]
    assert summary["total"].mean == pytest.approx(sum(parts))
    curve = bound.curve()
    assert (curve.mean * curve.edges.diff()).sum().item() == pytest.approx(summary["kl"].mean)


DATA = GaussianData(mean=-0.1, std=0.25)  # within -1 … 1: clipping changes nothing, and 256 levels hardly do


def gaussian_images(number: int) -> Tensor:
    draws = torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return to_uint8(DATA.mean + DATA.std * draws)


def gaussian_chain(variance: Variance, x0_mse: Tensor | None = None) -> tuple[GaussianDiffusion, Network, Tensor]:
    """Returns the diffusion, the exact denoiser of the data, and its mean squared error at each timestep."""
    chain = Chain.of_betas(schedules.linear(NUM_STEPS))
    diffusion = GaussianDiffusion(schedules.linear(NUM_STEPS), variance=variance, x0_mse=x0_mse)
    return diffusion, chain.network("epsilon", DATA.best_x0), DATA.x0_variance(chain.alpha_bars)


def test_the_x0_error_of_gaussian_data_is_the_posterior_variance():
    diffusion, denoise, expected = gaussian_chain("small")
    images = gaussian_images(600)
    measured = measure_x0_mse(denoise, diffusion, images, timesteps_for_x0_mse(600, 100, NUM_STEPS, seed=0), seed=0)
    assert measured.mean.shape == (NUM_STEPS,)
    z = (measured.mean - expected) / measured.se
    assert z.abs().max() < 4
    assert 0.7 < z.square().mean().sqrt() < 1.4
    assert (measured.se / expected).max() < 0.04


@pytest.mark.parametrize("clip_x0", [True, False])
def test_the_x0_error_is_that_of_the_reverse_step(clip_x0):
    """A network that predicts 3 for a white image has no error if x_0 is clipped."""
    diffusion = GaussianDiffusion(schedules.linear(NUM_STEPS), "x0", clip_x0=clip_x0)
    white = torch.full((20, 1, 4, 4), 255, dtype=torch.uint8)
    timesteps = timesteps_for_x0_mse(20, 20, NUM_STEPS, seed=0)
    measured = measure_x0_mse(lambda x, t: torch.full_like(x, 3.0), diffusion, white, timesteps, seed=0)
    torch.testing.assert_close(measured.mean, torch.full((NUM_STEPS,), 0.0 if clip_x0 else 4.0).double())


def test_the_measured_optimal_variance_gives_the_tightest_divergences_in_one_pass():
    diffusion, denoise, exact_mse = gaussian_chain("small")
    images = gaussian_images(200)
    mse = measure_x0_mse(denoise, diffusion, images, timesteps_for_x0_mse(200, 20, NUM_STEPS, seed=1), seed=1).mean
    chains = {variance: gaussian_chain(variance, mse)[0] for variance in VARIANCES}
    chains["exact"] = gaussian_chain("optimal", exact_mse)[0]
    asked = 0

    def listening(x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += len(x_t)
        return denoise(x_t, t)

    together = measure_bounds(listening, chains, images, 10, seed=0, batch_size=64)
    assert asked == 200 * (10 + 1)
    kl = {name: bound.summary()["kl"].mean for name, bound in together.items()}
    assert kl["optimal"] < 0.99 * min(kl["small"], kl["large"])
    assert kl["optimal"] == pytest.approx(kl["exact"], rel=2e-3)
    for variance, chain in chains.items():
        alone = measure_bounds(denoise, {"": chain}, images, 10, seed=0, batch_size=64)[""]
        assert together[variance].summary() == alone.summary(), variance


def test_the_batch_size_makes_no_difference():
    model = small.trained_a_little(small.small_model())
    images = random_images(10, seed=0, size=8)
    t = timesteps_for_x0_mse(10, 2, small.NUM_STEPS, seed=0)

    def measure(batch_size: int, seed: int = 0) -> list[Tensor]:
        bound = measure_bounds(model.ema, {"": model.diffusion}, images, 2, seed, batch_size)[""]
        error = measure_x0_mse(model.ema, model.diffusion, images, t, seed, batch_size)
        return [*bound.terms, error.mean]

    for one, other in zip(measure(10), measure(3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(measure(10)[1:], measure(10, seed=1)[1:], strict=True):  # of all but the prior
        assert not torch.allclose(one, other, rtol=1e-3)
