"""`DDPM.sample`, and what a network that has learnt its image by heart makes with it."""

from functools import partial

import pytest
import torch
from small import IMAGE_SHAPE, NUM_STEPS, Rows, Shades, fit, small_model, trained_a_little
from torch.optim import Adam

from ddpm.data import Split, to_model_range
from ddpm.diffusion import DDIM, Ancestral
from ddpm.models import UNet


@pytest.fixture(scope="module")
def model():
    return trained_a_little(small_model()).eval()


@pytest.mark.parametrize("sampler", [None, Ancestral(7), DDIM(6), DDIM(6, eta=1.0)])
def test_an_image_does_not_depend_on_how_many_are_made_nor_at_once(model, sampler):
    images = model.sample(6, sampler, seed=3)
    assert images.shape == (6, *IMAGE_SHAPE)
    assert len(images.flatten(1).unique(dim=0)) == 6
    for batch_size in (1, 4):
        torch.testing.assert_close(model.sample(6, sampler, seed=3, batch_size=batch_size), images, rtol=0, atol=1e-3)
    torch.testing.assert_close(model.sample(2, sampler, seed=3), images[:2], rtol=0, atol=1e-3)


def test_the_seed_decides(model):
    images = model.sample(3, seed=0)
    torch.rand(5)
    assert torch.equal(model.sample(3, seed=0), images)
    assert not torch.allclose(model.sample(3, seed=1), images, atol=0.1)


def test_without_a_seed_the_images_are_new(model):
    assert not torch.allclose(model.sample(2), model.sample(2), atol=0.1)


@pytest.mark.parametrize("sampler", [None, DDIM(5)])
def test_samples_are_images(model, sampler):
    unclipped = trained_a_little(small_model())
    unclipped.diffusion.clip_x0 = False
    images = unclipped.sample(8, sampler, seed=0)
    assert not images.requires_grad
    assert images.abs().max() == 1


def test_samples_come_from_the_moving_average():
    model = trained_a_little(small_model())
    images = model.sample(2, seed=0)
    with torch.no_grad():
        model.network.output[2].bias += 1
    assert torch.equal(model.sample(2, seed=0), images)
    with torch.no_grad():
        model.ema.module.output[2].bias += 1
    assert not torch.equal(model.sample(2, seed=0), images)


@pytest.mark.parametrize(("sampler", "steps"), [(None, NUM_STEPS), (DDIM(5), 5)])
def test_progress_is_told(model, sampler, steps):
    seen: list[int] = []
    model.sample(5, sampler, seed=0, batch_size=3, on_step=seen.append)
    assert seen == [3] * steps + [2] * steps


@pytest.mark.cuda
@pytest.mark.parametrize("sampler", [DDIM(6), Ancestral(6)], ids=["ddim", "ancestral"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the second uses CUDA graphs
def test_a_compiled_network_draws_the_same_images(gpu, mode, sampler):
    model = trained_a_little(small_model()).eval().to(gpu)
    images = model.sample(4, sampler, seed=0)
    model.ema.module.compile(mode=mode)
    for _ in range(3):  # CUDA graphs are recorded in the second call, and replayed in the third
        torch.testing.assert_close(model.sample(4, sampler, seed=0), images, rtol=0, atol=1e-3)


class OneImage(Shades):
    """A white ring, and nothing else."""

    def load(self):
        y, x = torch.meshgrid(*[torch.arange(8) - 3.5] * 2, indexing="ij")
        radius = (x**2 + y**2).sqrt()
        ring = (255 * ((radius > 1.5) & (radius < 3.2))).byte()
        many = Split(ring.expand(64, *IMAGE_SHAPE), torch.zeros(64, dtype=torch.int64))
        return {"train": many, "validation": many, "test": many}


def test_a_network_learns_one_image_by_heart():
    torch.manual_seed(0)
    network = UNet(channels=16, multipliers=(1, 2), blocks=1, attention=())
    model = small_model(network, num_steps=100, optimizer=partial(Adam, lr=3e-3), decay_steps=200, ema_decay=0.95)
    data, log = OneImage(batch_size=32), Rows()
    fit(model, 200, data=data, logger=log, log_every_n_steps=1, gradient_clip_val=1.0)
    losses = list(log.of("train/loss").values())
    assert losses[0] == pytest.approx(1, abs=0.1)  # a new network predicts 0 of unit noise
    assert sum(losses[-20:]) / 20 < 0.05
    ring = to_model_range(data.split("train").images[:1])
    for sampler in (DDIM(20), Ancestral()):
        samples = model.sample(4, sampler, seed=0)
        assert (samples - ring).abs().mean() < 0.05
