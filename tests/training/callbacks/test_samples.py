import numpy as np
import pytest
import torch
from PIL import Image
from small import IMAGE_SHAPE, fit, small_model, trained_a_little

from ddpm.diffusion import DDIM, Ancestral
from ddpm.seeding import ImageNoise, Stream
from ddpm.training.callbacks import SamplePictures

PADDING = 2


def side(cells, size=96):  # of 8 pixels, enlarged
    return cells * (size + PADDING) + PADDING


def test_pictures_of_each_validation(tmp_path):
    pictures = SamplePictures(tmp_path / "samples", DDIM(6), num_samples=9, num_trajectories=2, num_timesteps=5)
    fit(small_model(), 4, pictures, limit_val_batches=1, val_check_interval=2)
    kinds = ("samples", "trajectories")
    expected = {f"{kind}-step-{step:07d}.png" for kind in kinds for step in (2, 4)}
    assert {path.name for path in (tmp_path / "samples").iterdir()} == expected
    with Image.open(tmp_path / "samples" / "samples-step-0000004.png") as picture:
        assert picture.size == (side(3), side(3))
    with Image.open(tmp_path / "samples" / "trajectories-step-0000004.png") as picture:
        assert picture.size == (side(5), side(2 * 2))


@pytest.mark.parametrize("sampler", [DDIM(6), DDIM(6, eta=1.0), Ancestral(7)])
def test_they_are_drawn_from_the_same_noise_with_the_average(tmp_path, sampler):
    model = trained_a_little(small_model())
    pictures = SamplePictures(tmp_path, sampler, num_samples=5)
    samples, trajectories = pictures.draw(model)
    assert samples.shape == (5, *IMAGE_SHAPE)
    torch.rand(3)
    with torch.no_grad():
        model.network.output[2].bias += 1
    again = pictures.draw(model)
    assert torch.equal(again[0], samples)
    assert torch.equal(again[1], trajectories)
    torch.testing.assert_close(samples.clamp(-1, 1), model.sample(5, sampler, seed=0))
    with torch.no_grad():
        model.ema.module.output[2].bias += 1
    assert not torch.equal(pictures.draw(model)[0], samples)


@pytest.mark.parametrize("number", ["num_samples", "num_trajectories", "num_timesteps"])
def test_no_pictures_are_refused(tmp_path, number):
    with pytest.raises(ValueError, match=f"{number}=0"):
        SamplePictures(tmp_path, DDIM(6), **{number: 0})


def test_a_trajectory_shows_the_way_from_noise_to_the_sample(tmp_path):
    """In pairs of rows: x_t above, from noise on; the x_0 predicted from it below, up to the sample."""
    model = trained_a_little(small_model())
    pictures = SamplePictures(tmp_path, DDIM(10), num_samples=4, num_trajectories=3, num_timesteps=4)
    samples, trajectories = pictures.draw(model)
    images = trajectories.view(3, 2, 4, *IMAGE_SHAPE)
    assert torch.equal(images[:, 1, -1], samples[:3])  # the last step of DDIM ends at its x_0
    noise = ImageNoise(Stream.SAMPLING, 0, indices=range(3))
    assert torch.equal(images[:, 0, 0], noise(samples[:3]))
    first = SamplePictures(tmp_path, DDIM(10), num_samples=1, num_trajectories=1, num_timesteps=4).draw(model)[1]
    torch.testing.assert_close(first.view(2, 4, *IMAGE_SHAPE), images[0], rtol=0, atol=1e-3)


def test_fewer_samples_than_trajectories_will_do(tmp_path):
    _, trajectories = SamplePictures(tmp_path, DDIM(3), num_samples=2, num_timesteps=10).draw(small_model())
    assert trajectories.shape == (2 * 2 * 10, *IMAGE_SHAPE)


def test_a_sanity_check_draws_nothing(tmp_path):
    pictures = SamplePictures(tmp_path, DDIM(3), num_samples=2)
    fit(small_model(), 1, pictures, limit_val_batches=1, num_sanity_val_steps=1, val_check_interval=100)
    assert list(tmp_path.iterdir()) == []


def test_better_weights_change_the_picture(tmp_path):
    pictures = SamplePictures(tmp_path, DDIM(6), num_samples=4)
    fit(small_model(ema_decay=0.0), 4, pictures, limit_val_batches=1, val_check_interval=2)
    first, second = (np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("samples-*.png")))
    assert (first != second).any()
