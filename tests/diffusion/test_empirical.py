import pytest
import torch
from closed_forms import PREDICTIONS, Chain, column, seeded_randn_like
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, schedules, vlb_terms
from ddpm.diffusion.empirical import EmpiricalDenoiser

T = 1000
BETAS = schedules.linear(T)
CHAIN = Chain.of_betas(BETAS)
TIMES = [0, 1, 10, 100, 400, 700, 999]


def pixels(levels: Tensor) -> Tensor:
    return levels.double() / 127.5 - 1


def brute_force(levels: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Return Σ_i w_i y_i from the differences x_t - √ᾱ_t y_i, image by image."""
    y = pixels(levels)
    answers = []
    for x, step in zip(x_t.double(), t, strict=True):
        ab = CHAIN.alpha_bars[step]
        log_weights = torch.stack([-((x - ab.sqrt() * image) ** 2).sum() / (2 * (1 - ab)) for image in y])
        answers.append((column(log_weights.softmax(0)) * y).sum(0))
    return torch.stack(answers)


def random_levels(number: int, size: int = 6) -> Tensor:
    return torch.randint(256, (number, 1, size, size), generator=torch.Generator().manual_seed(0)).byte()


def noisy(levels: Tensor, t: Tensor) -> Tensor:
    """Return x_t ~ q(x_t|x_0), float32."""
    ab = column(CHAIN.alpha_bars[t])
    return (ab.sqrt() * pixels(levels) + (1 - ab).sqrt() * seeded_randn_like(1)(pixels(levels))).float()


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_it_is_the_posterior_mean_over_the_training_set(chunk_size: int) -> None:
    levels = random_levels(17)
    t = torch.tensor(TIMES)
    x_t = noisy(levels[: len(t)], t)
    denoiser = EmpiricalDenoiser(levels, CHAIN.alpha_bars, chunk_size)
    answer = denoiser(x_t, t)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.double(), brute_force(levels, x_t, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("t", [0, 1, 100])
def test_images_that_differ_by_a_few_grey_levels_are_distinguished(t: int) -> None:
    """The images of 28 × 28 pixels differ so little that the noise of x_t leaves several of them likely."""
    base = torch.where(torch.rand(28, 28, generator=torch.Generator().manual_seed(0)) < 0.2, 250, 2)
    levels = base.expand(40, 1, 28, 28).clone()
    for i in range(40):
        levels[i, 0, i % 28, : 1 + i % 5] += 1 + i % 3
    levels = levels.byte()
    times = torch.full((40,), t)
    x_t = noisy(levels, times)
    expected = brute_force(levels, x_t, times)
    likely = ((expected - pixels(levels)).abs().amax(dim=(1, 2, 3)) * 127.5).round()
    assert likely.max() >= 1  # more than one image is likely
    answer = EmpiricalDenoiser(levels, CHAIN.alpha_bars, chunk_size=16)(x_t, times)
    torch.testing.assert_close(answer.double(), expected, rtol=0, atol=2e-6)


def test_it_is_the_training_image_at_t_0_and_nearly_the_mean_image_at_the_last_t() -> None:
    levels = random_levels(30)
    denoiser = EmpiricalDenoiser(levels, CHAIN.alpha_bars)
    first, last = torch.zeros(30, dtype=torch.int64), torch.full((30,), T - 1)
    torch.testing.assert_close(denoiser(noisy(levels, first), first).double(), pixels(levels), rtol=0, atol=1e-6)
    mean = pixels(levels).mean(dim=0, keepdim=True)
    distance = (denoiser(noisy(levels, last), last) - mean).abs().mean()
    assert distance < 0.1 * (pixels(levels) - mean).abs().mean()


def test_it_is_the_mean_image_where_no_signal_is_left() -> None:
    levels = random_levels(9)
    denoiser = EmpiricalDenoiser(levels, torch.tensor([0.5, 0.0], dtype=torch.float64), chunk_size=2)
    answer = denoiser(torch.randn(3, 1, 6, 6), torch.ones(3, dtype=torch.int64))
    torch.testing.assert_close(
        answer.double(), pixels(levels).mean(0, keepdim=True).expand(3, -1, -1, -1), atol=1e-6, rtol=0
    )


def test_no_other_denoiser_has_a_lower_loss_on_the_training_set() -> None:
    """Each change of its output increases the mean squared error over images and noise."""
    levels = random_levels(12, size=2)
    denoiser = EmpiricalDenoiser(levels, CHAIN.alpha_bars)
    repeated = levels.repeat(500, 1, 1, 1)
    t = torch.full((len(repeated),), 500)
    x_t = noisy(repeated, t)
    best = denoiser(x_t, t).double()

    def loss(answer: Tensor) -> float:
        return (answer - pixels(repeated)).square().mean().item()

    others = [1.1 * best, 0.9 * best, best + 0.05, best - 0.05, 0.9 * best + 0.1 * pixels(repeated).mean(0)]
    assert all(loss(best) < loss(other) for other in others)


def test_every_kl_is_0_for_a_training_set_of_one_image() -> None:
    """It then always returns that image. The KL is 0 under every prediction type."""
    levels = random_levels(1)
    denoiser = EmpiricalDenoiser(levels, CHAIN.alpha_bars)
    x0 = pixels(levels).float()
    for prediction in PREDICTIONS:
        diffusion = GaussianDiffusion(BETAS, prediction)
        whole = diffusion.subsequence(torch.arange(T))  # the same chain with prediction="x0"
        terms = vlb_terms(denoiser, whole, x0, torch.tensor(TIMES[1:]), seeded_randn_like(2))
        assert terms.kl.abs().max() < 1e-6
