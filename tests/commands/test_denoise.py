import csv
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ddpm.commands.chains import X0, evenly, run_chains
from ddpm.commands.denoise import draw, pick_image
from ddpm.diffusion import GaussianDiffusion, schedules
from ddpm.errors import UserError

NUM_STEPS = 100
FIRST = {"data": {"_target_": "ddpm.data.MNISTMini"}, "image_index": 0}


@pytest.fixture(scope="module")
def x0():
    return pick_image(OmegaConf.create(FIRST), None)[1]


@pytest.fixture(scope="module")
def diffusion():
    return GaussianDiffusion(schedules.linear(NUM_STEPS))


def test_the_first_test_image_is_a_seven(x0):
    assert x0.shape == (1, 1, 28, 28)
    assert (x0.min(), x0.max()) == (-1, 1)
    assert pick_image(OmegaConf.create(FIRST), None)[2] == 7
    with pytest.raises(UserError, match="image_index=2000: the test set has the images 0 to 1999"):
        pick_image(OmegaConf.create(FIRST | {"image_index": 2000}), None)


@pytest.mark.parametrize("chain", ["forward", "oracle"])
def test_both_known_chains_have_the_noise_of_the_forward_marginal(x0, diffusion, chain):
    """E|x_t - x_0|² = (1 - √ᾱ)² x_0² + 1 - ᾱ; the chapter's own code, which adds no fresh noise, is far from it."""
    seen = run_chains(x0, diffusion, None, seed=0)[chain]
    alpha_bars = diffusion.alpha_bars
    expected = ((1 - alpha_bars.sqrt()) ** 2 * x0.square().mean() + 1 - alpha_bars).sqrt()
    torch.testing.assert_close(torch.tensor(seen.rmse[1:]).double(), expected, rtol=0.12, atol=0)


def test_the_oracle_ends_at_the_image_itself(x0, diffusion):
    chains = run_chains(x0, diffusion, None, seed=0)
    assert chains["forward"].rmse_at(X0) == 0
    assert chains["oracle"].rmse_at(X0) < 1e-6
    torch.testing.assert_close(chains["oracle"].images[X0], x0[0], rtol=0, atol=1e-6)
    assert chains["oracle"].rmse_at(0) > 1e-3


def test_the_reverse_chains_start_at_the_end_of_the_forward_chain(x0, diffusion):
    chains = run_chains(x0, diffusion, lambda x_t, t: torch.zeros_like(x_t), seed=0)
    last = NUM_STEPS - 1
    for name in ("oracle", "learned"):
        assert torch.equal(chains[name].images[last], chains["forward"].images[last])
    assert not torch.allclose(chains["learned"].images[X0], x0[0], atol=0.5)


def test_a_network_that_knows_the_image_gives_the_chain_of_the_oracle(x0, diffusion):
    chains = run_chains(x0, diffusion, lambda x_t, t: diffusion.x0_to_epsilon(x0, x_t, t), seed=0)
    for t, image in chains["oracle"].images.items():
        torch.testing.assert_close(chains["learned"].images[t], image, rtol=0, atol=1e-3)
    assert np.nanmax(chains["predicted_x0"].rmse) < 1e-3
    assert np.isnan(chains["predicted_x0"].rmse_at(X0))


def test_the_seed_decides(x0, diffusion):
    one, same, other = (run_chains(x0, diffusion, None, seed)["oracle"].images[57] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.1)


def test_evenly_spaced_timesteps():
    assert evenly(1000, 8) == [0, 143, 285, 428, 571, 714, 856, 999]
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(1, 8) == [0]


def test_a_chain_of_one_step_is_drawn(x0, tmp_path):
    with pytest.warns(UserWarning, match="leaves signal"):
        diffusion = GaussianDiffusion(torch.tensor([0.5]).double(), "x0")
    with pytest.warns(UserWarning, match="leaves signal"):
        chains = run_chains(x0, diffusion, lambda x_t, t: x_t, seed=0)
    draw(tmp_path, chains, diffusion)
    assert {path.name for path in tmp_path.iterdir()} == {"denoise.png", "denoise.gif", "error.png"}


def test_the_command_without_a_checkpoint(ddpm_here, tmp_path):
    answer = ddpm_here("denoise", "schedule=cosine", "schedule.num_steps=40", "image_index=3")
    assert answer.returncode == 0, answer.stderr
    (directory,) = (tmp_path / "outputs" / "denoise" / "default").iterdir()
    check_results(directory, 40, ["forward", "oracle"])
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics.items() >= {"data": "MNISTMini", "image_index": 3, "label": 0, "checkpoint": None}.items()
    assert metrics["rmse/oracle"] < 1e-6


def test_the_command_with_a_checkpoint(ddpm_here, tiny_run, tmp_path):
    answer = ddpm_here("denoise", f"ckpt={tiny_run}", "trainer=cpu")
    assert answer.returncode == 0, answer.stderr
    (directory,) = (tmp_path / "outputs" / "denoise" / "tiny").iterdir()
    check_results(directory, 30, ["forward", "oracle", "learned", "predicted_x0"])


def check_results(directory, num_steps, chains):
    with (directory / "error.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["t", *chains]
    assert [int(row[0]) for row in rows] == list(range(-1, num_steps))
    assert all(float(cell) >= 0 for row in rows for cell in row[1:] if cell)
    for name in ("denoise.png", "error.png", "denoise.gif"):
        with Image.open(directory / name) as picture:
            low, high = picture.convert("L").getextrema()
            assert low < 50
            assert high > 200
    assert json.loads((directory / "metrics.json").read_text()).keys() >= {f"rmse/{name}" for name in chains}
