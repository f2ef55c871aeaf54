import csv
import json

import pytest
import torch
from PIL import Image

from ddpm.diffusion import GaussianDiffusion, schedules
from ddpm.errors import UserError
from ddpm.module import DDPM
from ddpm.tasks.evaluate import Curve, Estimate, bound, stratified_timesteps, summarise, up_to

NUM_STEPS = 60


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (300, 1, 6, 6), generator=torch.Generator().manual_seed(0)).byte()


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


@pytest.mark.parametrize("num_steps", [2, 37, 1000])
def test_as_many_timesteps_as_steps_are_all_of_them(num_steps):
    t = stratified_timesteps(50, num_steps - 1, num_steps, seed=0)
    assert torch.equal(t, torch.arange(1, num_steps).expand(50, -1))


def measure(diffusion, images, per_image, seed):
    t = stratified_timesteps(len(images), per_image, NUM_STEPS, seed)
    terms = bound(rough_denoise, diffusion, images, t, seed)
    return summarise(terms, t, Curve.of(t, terms.kl, NUM_STEPS))


def test_few_timesteps_give_the_bound_of_all(images, diffusion):
    exact = measure(diffusion, images, NUM_STEPS - 1, seed=0)
    rough = measure(diffusion, images, 4, seed=1)
    for name in ("kl", "reconstruction", "total"):
        assert abs(exact[name].mean - rough[name].mean) < 4 * (exact[name].se + rough[name].se), name
    assert rough["total"].se < 0.02 * rough["total"].mean
    assert rough["prior"] == exact["prior"]


def test_the_standard_error_is_the_spread_over_seeds(diffusion, images):
    totals = [measure(diffusion, images, 4, seed)["total"] for seed in range(20)]
    spread = torch.tensor([total.mean for total in totals]).std().item()
    claimed = sum(total.se for total in totals) / 20
    assert 0.5 < claimed / spread < 2


def test_the_batch_size_makes_no_difference(tiny_run):
    model = DDPM.load_from_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    images = torch.randint(256, (10, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    t = stratified_timesteps(10, 2, model.diffusion.num_steps, seed=0)
    seen = []
    one = bound(model.ema, model.diffusion, images, t, seed=0, batch_size=10)
    other = bound(model.ema, model.diffusion, images, t, seed=0, batch_size=3, on_images=seen.append)
    assert seen == [3, 3, 3, 1]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    another = bound(model.ema, model.diffusion, images, t, seed=1)
    assert not torch.allclose(one.reconstruction, another.reconstruction, rtol=1e-3)


def test_standard_error_is_that_of_a_mean():
    assert Estimate.of(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx((2.5, (5 / 3) ** 0.5 / 2))


def test_the_curve_sums_to_the_bound(tmp_path):
    kl = torch.rand(20, 299, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curve = Curve.of(stratified_timesteps(20, 299, 300, seed=0), kl, num_steps=300)
    curve.write(tmp_path / "kl.csv")
    with (tmp_path / "kl.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    first, last = [int(row["t_from"]) for row in rows], [int(row["t_to"]) for row in rows]
    assert first == [1, *(t + 1 for t in last[:-1])]
    assert last[-1] == 299
    assert sum(int(row["n"]) for row in rows) == 20 * 299
    total = sum(float(row["kl_bits_per_dim"]) * (b - a + 1) for row, a, b in zip(rows, first, last, strict=True))
    assert total == pytest.approx(kl.sum(dim=1).mean().item())


def test_the_curves_error_is_that_between_images():
    offset = torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kl = offset + torch.linspace(5, 0, 299, dtype=torch.float64)
    curve = Curve.of(stratified_timesteps(50, 299, 300, seed=0), kl, num_steps=300)
    torch.testing.assert_close(curve.se, (offset.std() / 50**0.5).expand(100))


def test_few_divergences_are_few_bins():
    t = stratified_timesteps(6, 10, 1000, seed=0)
    curve = Curve.of(t, (t < 334).double(), 1000)
    assert curve.edges.tolist() == [1, 334, 667, 1000]
    assert (curve.mean.tolist(), curve.n.sum()) == ([1, 0, 0], 60)
    assert torch.equal(curve.at(torch.tensor([[1, 333, 334]])), torch.tensor([[1, 1, 0]]).double())


def test_numbers_that_there_are_not():
    assert up_to("num_images", None, 5) == 5
    for value in (0, 6):
        with pytest.raises(UserError, match=f"num_images={value}: there are 1 to 5"):
            up_to("num_images", value, 5)


def test_the_command(ddpm_cli, tiny_run, tmp_path):
    answer = ddpm_cli("evaluate", f"ckpt={tiny_run}", "num_images=30", "timesteps_per_image=4", "trainer=cpu", "seed=1")
    assert answer.returncode == 0, answer.stderr
    assert "Variational bound" in answer.stdout
    (directory,) = (tmp_path / "outputs" / "evaluate" / "tiny").iterdir()
    metrics = json.loads((directory / "metrics.json").read_text())
    parts = [metrics[f"bpd/{name}"] for name in ("prior", "kl", "reconstruction")]
    assert metrics["bpd/total"] == pytest.approx(sum(parts))
    assert metrics["bpd/total_se"] > 0
    facts = {
        "data": "MNISTMini",
        "images": 30,
        "timesteps_per_image": 4,
        "num_steps": 30,
        "clip_x0": True,
        "variance": "small",
        "weights": "EMA",
        "step": 2,
        "seed": 1,
        "checkpoint": str(tiny_run / "checkpoints" / "last.ckpt"),
    }
    assert metrics.items() >= facts.items()
    assert json.loads((directory / "provenance.json").read_text())["checkpoint"] == facts["checkpoint"]
    with (directory / "kl.csv").open(newline="") as file:
        assert sum(int(row["n"]) for row in csv.DictReader(file)) == 30 * 4
    with Image.open(directory / "kl.png") as picture:
        assert picture.convert("L").getextrema() == (0, 255)
