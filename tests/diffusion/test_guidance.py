"""Guidance against closed forms: a mixture of Gaussians whose components are the classes."""

import math

import pytest
import torch
from closed_forms import PREDICTIONS, Chain, GaussianData, MixtureData, column, seeded_randn_like
from torch import nn

from ddpm.diffusion import (
    DDIM,
    Ancestral,
    Autoguidance,
    ClassifierFree,
    DPMSolverPP,
    GaussianDiffusion,
    SDEDPMSolverPP,
    schedules,
)

CHAIN = Chain.of_betas(schedules.cosine(40))
NUM_CLASSES = 3
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-0.8, 0.1, 0.9], [0.3, -0.6, 0.2]], dtype=torch.float64).view(1, 1, 2, NUM_CLASSES)
STD = 0.3


def mixture_network(prediction, calls=None):
    """The optimal network: for label k of the component k, for "no label" of the whole mixture."""
    parts = [MixtureData(torch.ones(1, dtype=torch.float64), MEANS[..., k : k + 1], STD) for k in range(NUM_CLASSES)]
    networks = [CHAIN.network(prediction, data.best_x0) for data in (*parts, MixtureData(WEIGHTS, MEANS, STD))]

    def network(x_t, t, labels):
        if calls is not None:
            calls.append((x_t.shape[0], labels.tolist()))
        rows = zip(x_t.split(1), t.split(1), labels.tolist(), strict=True)
        return torch.cat([networks[label](x, time) for x, time, label in rows])

    return network


def log_density(x_t, ab, label=None):
    """log q(x_t | label), or log q(x_t), up to a constant; x_t [1, 1, 2]."""
    variance = ab * STD**2 + 1 - ab
    distances = (x_t.unsqueeze(-1) - ab.sqrt() * MEANS[0]).square().sum(dim=(0, 1, 2))
    fits = -distances / (2 * variance)
    return fits[label] if label is not None else torch.logsumexp(WEIGHTS.log() + fits, dim=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_score_is_that_of_the_tilted_density(prediction):
    """∇ log q(x_t)^(1-w) q(x_t|label)^w, the same for all types of prediction."""
    scale, t = 2.5, torch.tensor([2, 11, 25, 37])
    labels = torch.tensor([0, 1, 2, 0])
    x_t = torch.randn(4, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guided = ClassifierFree(scale)(mixture_network(prediction), NUM_CLASSES)
    diffusion = GaussianDiffusion(CHAIN.betas, prediction, clip_x0=False)
    x0 = diffusion.to_x0(guided(x_t, t, labels=labels), x_t.float(), t)

    for i in range(4):
        ab = CHAIN.alpha_bars[t[i]]
        x = x_t[i].clone().requires_grad_()
        tilted = (1 - scale) * log_density(x, ab) + scale * log_density(x, ab, labels[i])
        (score,) = torch.autograd.grad(tilted, x)
        expected = (x_t[i] + (1 - ab) * score) / ab.sqrt()
        torch.testing.assert_close(x0[i].double(), expected, rtol=2e-3, atol=2e-3)


def test_both_halves_are_one_batch_and_scale_1_is_the_network_itself():
    calls: list = []
    network = mixture_network("epsilon", calls)
    x_t, t, labels = torch.zeros(2, 1, 1, 2), torch.tensor([3, 20]), torch.tensor([1, 2])
    ClassifierFree(3.0)(network, NUM_CLASSES)(x_t, t, labels=labels)
    assert calls == [(4, [1, 2, NUM_CLASSES, NUM_CLASSES])]
    assert ClassifierFree(1.0)(network, NUM_CLASSES) is network
    unlabelled = ClassifierFree(0.0)(network, NUM_CLASSES)(x_t, t, labels=labels)
    torch.testing.assert_close(unlabelled, network(x_t, t, torch.full_like(labels, NUM_CLASSES)).float())


def test_outputs_in_bfloat16_are_combined_in_float32():
    def network(x_t, t, labels):
        return (1 + labels.view(-1, 1, 1, 1) / 128).expand_as(x_t).bfloat16()

    guided = ClassifierFree(2.5)(network, NUM_CLASSES)(
        torch.zeros(1, 1, 1, 2), torch.tensor([3]), labels=torch.tensor([1])
    )
    expected = 1 + NUM_CLASSES / 128 + 2.5 * (1 - NUM_CLASSES) / 128
    torch.testing.assert_close(guided, torch.full((1, 1, 1, 2), expected), rtol=1e-6, atol=0)


def test_outside_the_interval_the_network_works_alone():
    calls: list = []
    network = mixture_network("epsilon", calls)
    guidance = ClassifierFree(3.0, [10, 20])
    guided = guidance(network, NUM_CLASSES)
    t = torch.tensor([9, 10, 20, 21])
    x_t, labels = torch.ones(4, 1, 1, 2), torch.tensor([0, 1, 2, 0])
    output, plain = guided(x_t, t, labels=labels), network(x_t, t, labels)
    everywhere = ClassifierFree(3.0)(network, NUM_CLASSES)(x_t, t, labels=labels)
    torch.testing.assert_close(output, torch.where(column((t > 9) & (t < 21)), everywhere, plain))
    calls.clear()
    guided(x_t, torch.full((4,), 30), labels=labels)
    assert calls == [(4, labels.tolist())]
    assert guidance.evaluations(t) == 6
    assert ClassifierFree(3.0).evaluations(t) == 8
    assert ClassifierFree(1.0, [10, 20]).evaluations(t) == 4


class OfGaussian(nn.Module):
    """The optimal network for pixels from N(mean, 0.5²)."""

    def __init__(self, mean):
        super().__init__()
        self.network = CHAIN.network("v", GaussianData(mean, 0.5).best_x0)

    def forward(self, x_t, t):
        return self.network(x_t, t)


@pytest.mark.parametrize(
    "sampler", [Ancestral(), DDIM(9), DPMSolverPP(9, order=3), SDEDPMSolverPP(9)], ids=lambda s: type(s).__name__
)
def test_every_sampler_takes_a_guided_network(sampler):
    """Of N(m, s²) away from N(m', s²) by a scale w: the score is that of N(m' + w (m - m'), s²)."""
    diffusion = GaussianDiffusion(CHAIN.betas, "v", clip_x0=False)
    x_T = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    guided = Autoguidance(OfGaussian(-0.1), 3.0)(OfGaussian(0.2))
    samples = sampler(guided, diffusion, x_T, seeded_randn_like(1))
    expected = sampler(OfGaussian(-0.1 + 3 * 0.3), diffusion, x_T, seeded_randn_like(1))
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "interval", "words"),
    [
        (math.nan, None, "scale must be a finite number"),
        (math.inf, None, "scale must be a finite number"),
        (-1.0, None, "at least 0, not -1"),
        (2.0, [20, 10], r"interval must be the first and the last timestep, .* not \[20, 10\]"),
        (2.0, [-1, 10], "interval must be"),
        (2.0, [10], "interval must be"),
        (2.0, [], "interval must be"),
    ],
)
def test_impossible_settings_are_refused(scale, interval, words):
    with pytest.raises(ValueError, match=words):
        ClassifierFree(scale, interval)
