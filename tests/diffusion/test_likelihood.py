import math

import pytest
import torch
from closed_forms import PREDICTIONS, VARIANCES, Chain, GaussianData, gaussian_kl, seeded_randn_like
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.likelihood import discretized_gaussian_log_prob, vlb_terms, vlb_terms_under
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion, Network, Variance

PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
MEANS = torch.tensor([-3.0, -1.0, -0.3, 0.0, 0.501, 1.0, 2.5], dtype=torch.float64)
NATS = math.log(2)  # in one bit


def reference_log_prob(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return log(Φ(upper) - Φ(lower)) in float64, mirrored into the lower tail, where no digits cancel."""
    std = variance.sqrt()
    lower = torch.where(x0 < -1 + 1e-3, -torch.inf, (x0 - 1 / 255 - mean) / std)
    upper = torch.where(x0 > 1 - 1e-3, torch.inf, (x0 + 1 / 255 - mean) / std)
    mirrored = x0 > mean
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(log_lower - log_upper))


def all_pixels_means_and_variances(variances: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return x0 [V, 7, 256, 1], mean [V, 7, 256, 1] and variance [V, 1, 1, 1]."""
    variance = torch.tensor(variances, dtype=torch.float64).view(-1, 1, 1, 1)
    shape = (len(variances), len(MEANS), 256, 1)
    x0, mean = PIXELS.view(1, 1, 256, 1).expand(shape), MEANS.view(1, -1, 1, 1).expand(shape)
    return x0.to(dtype), mean.to(dtype), variance.to(dtype)


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
@pytest.mark.parametrize("variance", [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 100.0])
def test_the_256_probabilities_sum_to_one(variance: float, dtype: torch.dtype, slack: float) -> None:
    log_prob = discretized_gaussian_log_prob(*all_pixels_means_and_variances([variance], dtype))
    assert log_prob.isfinite().all()
    total = log_prob.double().exp().sum(dim=2)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=slack)


def test_each_bin_holds_the_integral_of_the_density() -> None:
    """Interior bins against a sum over 200 slices of the normal density, without the error function."""
    x0, mean, variance = all_pixels_means_and_variances([1e-3, 1e-2, 1.0, 100.0], torch.float64)
    slices = (torch.arange(200, dtype=torch.float64) + 0.5) / 200 * (2 / 255) - 1 / 255
    z2 = (x0.unsqueeze(-1) + slices - mean.unsqueeze(-1)) ** 2 / variance.unsqueeze(-1)
    log_density = -0.5 * z2 - 0.5 * torch.log(2 * math.pi * variance).unsqueeze(-1)
    expected = torch.logsumexp(log_density, dim=-1) + math.log(2 / 255 / 200)
    actual = discretized_gaussian_log_prob(x0, mean, variance)
    torch.testing.assert_close(actual[:, :, 1:-1], expected[:, :, 1:-1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probabilities_below_minus_1e8_nats_are_accurate(dtype: torch.dtype) -> None:
    x0, mean, variance = all_pixels_means_and_variances([1e-8, 1e-6, 1e-4, 1e-2], dtype)
    actual = discretized_gaussian_log_prob(x0, mean, variance)
    expected = reference_log_prob(*(x.double() for x in (x0, mean, variance)))
    assert expected.min() < -1e8
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=2e-3)


# A quadratic function has the same mean over N(m, s²) as over the two points m ± s. So the mean over the four pixels
# of a 2×2 image with all pairs (x0 = m ± s, eps = ±1) is exactly the expectation in the tests below.

HIGH, LOW = PIXELS[190].item(), PIXELS[80].item()
DATA = GaussianData(mean=(HIGH + LOW) / 2, std=(HIGH - LOW) / 2)
IMAGE = torch.tensor([[HIGH, HIGH], [LOW, LOW]]).view(1, 1, 2, 2)
SIGNS = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
T = 40


def signs(x: Tensor) -> Tensor:
    return SIGNS.expand_as(x).to(x)


def gaussian_case(variance: Variance, prediction: Prediction = "epsilon") -> tuple[GaussianDiffusion, Chain, Network]:
    betas = schedules.linear(T)
    chain = Chain.of_betas(betas)
    diffusion = GaussianDiffusion(
        betas,
        prediction=prediction,
        variance=variance,
        x0_mse=DATA.x0_variance(chain.alpha_bars),
        clip_x0=False,
    )
    return diffusion, chain, chain.network(prediction, DATA.best_x0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gaussian_data_with_the_optimal_variance_reach_the_information_bound(prediction: Prediction) -> None:
    """prior + Σ KL = h(x_0) - h(x_0|x_1) + KL(q_T ‖ N(0, 1)), where x_1 is the least noisy latent (t = 0)."""
    diffusion, chain, network = gaussian_case("optimal", prediction)
    terms = vlb_terms(network, diffusion, IMAGE, randn_like=signs)
    ab = chain.alpha_bars
    information = 0.5 * torch.log(DATA.std**2 / DATA.x0_variance(ab[0]))
    one = torch.ones((), dtype=torch.float64)
    leftover = gaussian_kl(*DATA.marginal(ab[-1]), 0 * one, one)
    bound = (information + leftover).item() / NATS
    assert (terms.prior + terms.kl.sum(dim=1)).item() == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("variance", VARIANCES)
def test_each_kl_of_gaussian_data_is_its_closed_form(variance: Variance) -> None:
    diffusion, chain, network = gaussian_case(variance)
    terms = vlb_terms(network, diffusion, IMAGE, randn_like=signs)
    assert terms.kl.shape == (1, T - 1)
    mse = DATA.x0_variance(chain.alpha_bars)
    sigma2 = chain.reverse_variance(variance, mse)[1:]
    ratio = chain.variance[1:] / sigma2
    expected = 0.5 * (ratio - 1 - ratio.log() + (chain.c0**2 * mse)[1:] / sigma2)
    torch.testing.assert_close(terms.kl[0].double(), expected / NATS, rtol=2e-3, atol=1e-6)


def test_small_and_large_variance_give_a_looser_bound() -> None:
    sums = {}
    for variance in VARIANCES:
        diffusion, _, network = gaussian_case(variance)
        sums[variance] = vlb_terms(network, diffusion, IMAGE, randn_like=signs).kl.sum().item()
    assert sums["small"] > 1.01 * sums["optimal"]
    assert sums["large"] > 1.01 * sums["optimal"]


def test_the_terms_under_several_variances_need_one_network_call_per_timestep() -> None:
    cases = [gaussian_case(variance) for variance in VARIANCES]
    called = []

    def recording(x_t: Tensor, t: Tensor) -> Tensor:
        called.append(t)
        return cases[0][2](x_t, t)

    together = vlb_terms_under(recording, [diffusion for diffusion, _, _ in cases], IMAGE, randn_like=signs)
    assert len(called) == T
    for terms, (diffusion, _, network) in zip(together, cases, strict=True):
        alone = vlb_terms(network, diffusion, IMAGE, randn_like=signs)
        assert all(torch.equal(one, other) for one, other in zip(terms, alone, strict=True))


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_reconstruction_is_the_discretised_gaussian_at_t_0(variance: Variance) -> None:
    diffusion, chain, network = gaussian_case(variance)
    terms = vlb_terms(network, diffusion, IMAGE, randn_like=signs)
    ab = chain.alpha_bars[0]
    x_1 = ab.sqrt() * IMAGE + (1 - ab).sqrt() * SIGNS
    sigma2 = chain.reverse_variance(variance, DATA.x0_variance(chain.alpha_bars))[0]
    nats = -reference_log_prob(IMAGE.double(), DATA.best_x0(x_1, ab), sigma2).mean()
    assert terms.reconstruction.shape == (1,)
    assert terms.reconstruction.item() == pytest.approx(nats.item() / NATS, rel=1e-3)


def test_the_prior_is_the_closed_form_of_each_image() -> None:
    betas = schedules.linear(T)
    diffusion = GaussianDiffusion(betas)
    x0 = seeded_randn_like(0)(torch.empty(5, 2, 3, 4))
    ab = torch.cumprod(1 - betas, 0)[-1]
    one = torch.ones((), dtype=torch.float64)
    nats = gaussian_kl(ab.sqrt() * x0.double(), 1 - ab, 0 * one, one).mean(dim=(1, 2, 3))
    prior = vlb_terms(lambda x, t: x, diffusion, x0, timesteps=torch.tensor([1])).prior
    assert prior.shape == (5,)
    torch.testing.assert_close(prior, (nats / NATS).to(prior), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip_x0", [True, False])
def test_every_kl_of_a_single_known_image_is_0(prediction: Prediction, clip_x0: bool) -> None:
    betas = schedules.linear(T)
    image = seeded_randn_like(0)(torch.empty(1, 1, 8, 8)).clamp(-1, 1)
    diffusion = GaussianDiffusion(betas, prediction=prediction, clip_x0=clip_x0)
    network = Chain.of_betas(betas).network(prediction, lambda x, ab: image.double().expand_as(x))
    terms = vlb_terms(network, diffusion, image, randn_like=seeded_randn_like(1))
    assert terms.kl.abs().max() < 1e-6


def test_clip_x0_changes_the_bound() -> None:
    """A network that predicts x0 = 3 for a white image has KL 0 with clipping to 1, and more without."""
    kl = {}
    for clip_x0 in (True, False):
        diffusion = GaussianDiffusion(schedules.linear(T), prediction="x0", clip_x0=clip_x0)
        terms = vlb_terms(lambda x, t: torch.full_like(x, 3.0), diffusion, torch.ones(1, 1, 2, 2))
        kl[clip_x0] = terms.kl
    assert kl[True].abs().max() < 1e-6
    chain = Chain.of_betas(schedules.linear(T))
    expected = (chain.c0**2 * (3 - 1) ** 2 / (2 * chain.variance))[1:] / NATS
    torch.testing.assert_close(kl[False][0].double(), expected, rtol=1e-3, atol=1e-7)


def test_totals_over_stratified_subsets_average_to_the_full_total() -> None:
    diffusion, _, network = gaussian_case("large")
    whole = vlb_terms(network, diffusion, IMAGE, randn_like=signs)
    total = whole.prior + whole.kl.sum(dim=1) + whole.reconstruction
    torch.testing.assert_close(whole.total(T), total, rtol=1e-5, atol=0)

    for size in (1, 3, 13):  # divisors of T - 1 = 39
        starts = 1 + torch.arange(size) * (39 // size)
        totals = [
            vlb_terms(network, diffusion, IMAGE, timesteps=starts + shift, randn_like=signs).total(T)
            for shift in range(39 // size)
        ]
        torch.testing.assert_close(torch.stack(totals).mean(dim=0), total, rtol=1e-5, atol=0)


def test_the_columns_of_kl_are_in_the_order_of_the_timesteps() -> None:
    diffusion, _, network = gaussian_case("small")
    whole = vlb_terms(network, diffusion, IMAGE, randn_like=signs).kl[0]
    for chosen in ([7], [30, 2, 39], [1, 1]):
        some = vlb_terms(network, diffusion, IMAGE, timesteps=torch.tensor(chosen), randn_like=signs).kl
        assert some.shape == (1, len(chosen))
        torch.testing.assert_close(some[0], whole[[t - 1 for t in chosen]], rtol=1e-4, atol=1e-8)


def test_every_image_may_have_its_own_timesteps() -> None:
    diffusion, _, network = gaussian_case("small")
    images = torch.cat([IMAGE, -IMAGE, IMAGE * 0.5])
    own = torch.tensor([[1, 5], [9, 39], [20, 3]])
    together = vlb_terms(network, diffusion, images, timesteps=own, randn_like=signs)
    for i in range(3):
        alone = vlb_terms(network, diffusion, images[i : i + 1], timesteps=own[i], randn_like=signs)
        for name in ("prior", "kl", "reconstruction"):
            torch.testing.assert_close(getattr(together, name)[i], getattr(alone, name)[0], rtol=1e-4, atol=1e-7)


def test_the_network_is_called_at_the_timesteps_and_once_at_0() -> None:
    diffusion, _, network = gaussian_case("small")
    called = []

    def recording(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        called.extend(t.tolist())
        return network(x_t, t)

    vlb_terms(recording, diffusion, IMAGE, timesteps=torch.tensor([4, 39]), randn_like=signs)
    assert sorted(called) == [0, 4, 39]


def test_a_chain_of_one_step_has_a_prior_and_a_reconstruction_alone() -> None:
    diffusion = GaussianDiffusion(torch.tensor([0.999], dtype=torch.float64), prediction="x0")
    terms = vlb_terms(lambda x, t: torch.zeros_like(x), diffusion, IMAGE)
    assert terms.kl.shape == (1, 0)
    torch.testing.assert_close(terms.total(1), terms.prior + terms.reconstruction)
