"""The likelihood part of `ddpm evaluate`, on the tiny model: 30 timesteps, trained for two steps."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ddpm.commands.evaluate.bits_per_dim import spread, timesteps_per_image, up_to
from ddpm.commands.variance import set_variance, stored_x0_mse, x0_mse_key, x0_mse_path
from ddpm.diffusion import Ancestral, GaussianDiffusion
from ddpm.errors import UserError
from ddpm.training.building import load_model

FEW = ["trainer=cpu", "num_images=30", "num_samples=0", "evaluate.train_images=20", "evaluate.empirical_images=10"]
LEAST = ["trainer=cpu", "num_images=4", "num_samples=0", "timesteps_per_image=1", "evaluate.x0_mse_draws=4"]
TERMS = ("prior", "kl", "reconstruction", "total")


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the run, because evaluation writes into it."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run" / "tiny"))


def results(tmp_path):
    (directory,) = (tmp_path / "outputs" / "evaluate" / "tiny").iterdir()
    return directory, json.loads((directory / "metrics.json").read_text())


def test_the_command(ddpm_here, run, tmp_path):
    answer = ddpm_here("evaluate", f"ckpt={run}", *FEW, "timesteps_per_image=4", "seed=1")
    assert answer.returncode == 0, answer.stderr
    for words in ("Variational bound", "small", "large", "optimal", "empirical_train", "gap", "is kept in"):
        assert words in answer.stdout
    directory, metrics = results(tmp_path)

    groups = ["bpd", *(f"bpd/{which}" for which in ("small", "large", "optimal", "train", "gap"))]
    for group in [*groups, "bpd/empirical_train", "bpd/empirical_test"]:
        parts = [metrics[f"{group}/{name}"] for name in ("prior", "kl", "reconstruction")]
        assert metrics[f"{group}/total"] == pytest.approx(sum(parts), rel=1e-5), group
        assert metrics[f"{group}/total_se"] > 0, group
    for term in TERMS:
        assert metrics[f"bpd/{term}"] == metrics[f"bpd/small/{term}"]
        assert metrics[f"bpd/gap/{term}"] == pytest.approx(metrics[f"bpd/{term}"] - metrics[f"bpd/train/{term}"])
    assert metrics["bpd/optimal/kl"] < min(metrics["bpd/small/kl"], metrics["bpd/large/kl"])
    assert metrics["bpd/empirical_train/kl"] < 0.1 * metrics["bpd/train/kl"]
    assert metrics["bpd/empirical_train/kl"] < metrics["bpd/empirical_test/kl"]

    facts = {
        "data": "MNISTMini",
        "images": 30,
        "train_images": 20,
        "empirical_train_images": 10,
        "empirical_test_images": 10,
        "timesteps_per_image": 4,
        "exact": False,
        "num_steps": 30,
        "clip_x0": True,
        "variance": "small",
        "x0_mse_draws": 20,
        "weights": "EMA",
        "step": 2,
        "seed": 1,
        "checkpoint": str(run / "checkpoints" / "last.ckpt"),
    }
    assert metrics.items() >= facts.items()
    assert json.loads((directory / "provenance.json").read_text())["checkpoint"] == facts["checkpoint"]
    with (directory / "kl.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    asked = {"test": 30, "train": 20, "gap": 20, "empirical_train": 10, "empirical_test": 10}
    assert {row["curve"] for row in rows} == asked.keys()
    for name, images in asked.items():
        assert sum(int(row["n"]) for row in rows if row["curve"] == name) == 4 * images
    with Image.open(directory / "kl.png") as picture:
        assert picture.convert("L").getextrema() == (0, 255)

    stored = json.loads((run / "checkpoints" / "last.x0_mse.json").read_text())
    assert len(stored["x0_mse"]) == len(stored["se"]) == 30
    assert min(stored["n"]) >= 20
    assert all(0 < se < mse for se, mse in zip(stored["se"], stored["x0_mse"], strict=True))
    assert stored.items() >= {"clip_x0": True, "images": 30, "draws": 20, "seed": 1, "data": "MNISTMini"}.items()


def test_the_exact_bound_alone(ddpm_here, run, tmp_path):
    alone = ["num_samples=0", "evaluate.train_images=0", "evaluate.empirical_images=0"]
    answer = ddpm_here("evaluate", f"ckpt={run}", "trainer=cpu", "num_images=10", "evaluate.exact=true", *alone)
    assert answer.returncode == 0, answer.stderr
    assert "gap" not in answer.stdout
    directory, metrics = results(tmp_path)
    assert metrics.items() >= {"timesteps_per_image": 29, "exact": True, "images": 10}.items()
    assert not any(key.startswith(("bpd/train", "bpd/gap", "bpd/empirical")) for key in metrics)
    with (directory / "kl.csv").open(newline="") as file:
        assert [(row["t_from"], row["n"]) for row in csv.DictReader(file)][:1] == [("1", "20")]


def test_the_bound_of_a_chain_that_is_shorter_than_the_sampler(ddpm_here):
    """Nothing is sampled, so the sampler's 20 steps do not matter."""
    small = ["data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule=cosine", "schedule.num_steps=2"]
    trained = ddpm_here("train", *small, "sampler.steps=2", "trainer=cpu", "trainer.max_steps=1", "name=short")
    assert trained.returncode == 0, trained.stderr
    few = [*LEAST, "evaluate.train_images=0", "evaluate.empirical_images=0"]
    answer = ddpm_here("evaluate", "ckpt=outputs/train/default/short", *few)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("exact", [True, False])
def test_the_bound_of_a_chain_of_one_step_is_refused(exact):
    with pytest.raises(UserError, match="has no timestep t ≥ 1 to measure"):
        timesteps_per_image(OmegaConf.create({"evaluate": {"exact": exact}, "timesteps_per_image": 10}), num_steps=1)


def test_the_optimal_variance_is_measured_once_and_then_used(ddpm_here, run, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    model = load_model(checkpoint)
    with pytest.raises(UserError, match=r"has not been measured.*\n?.*ddpm evaluate ckpt="):
        set_variance(model, "optimal", checkpoint, Ancestral())

    few = [*LEAST, "evaluate.train_images=0", "evaluate.empirical_images=0"]
    first = ddpm_here("evaluate", f"ckpt={run}", *few)
    assert first.returncode == 0, first.stderr
    written = x0_mse_path(checkpoint).read_bytes()
    _, plain = results(tmp_path)
    shutil.rmtree(tmp_path / "outputs")

    second = ddpm_here("evaluate", f"ckpt={run}", *few, "variance=optimal")
    assert second.returncode == 0, second.stderr
    assert "measured before" in second.stdout
    assert x0_mse_path(checkpoint).read_bytes() == written
    _, optimal = results(tmp_path)
    assert optimal["variance"] == "optimal"
    assert optimal["bpd/total"] == plain["bpd/optimal/total"]

    small = model.diffusion
    set_variance(model, "optimal", checkpoint, Ancestral())
    x0_mse = torch.tensor(json.loads(written)["x0_mse"], dtype=torch.float64)
    coefficient = small.coefficients.posterior_x0
    extra = model.diffusion.reverse_variance[1:] - small.reverse_variance[1:]
    torch.testing.assert_close(extra, (coefficient**2 * x0_mse)[1:])


@pytest.mark.parametrize(("overrides", "words"), [([], "cannot be kept"), (["data=mnist_mini"], "is not kept")])
def test_an_x0_error_that_cannot_be_kept_is_still_used(ddpm_here, run, tmp_path, overrides, words):
    path = x0_mse_path(run / "checkpoints" / "last.ckpt")
    path.mkdir()  # so that not even root can write the file
    few = [*LEAST, "evaluate.train_images=0", "evaluate.empirical_images=0", "variance=optimal"]
    answer = ddpm_here("evaluate", f"ckpt={run}", *few, *overrides)
    assert answer.returncode == 0, answer.stderr
    assert words in answer.stdout
    assert list(path.iterdir()) == []
    _, metrics = results(tmp_path)
    assert metrics["bpd/total"] == metrics["bpd/optimal/total"]


def test_the_x0_error_of_another_checkpoint_is_not_used(tiny_run, tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    shutil.copy(tiny_run / "checkpoints" / "last.ckpt", checkpoint)
    diffusion = load_model(checkpoint).diffusion
    stored = x0_mse_key(checkpoint, diffusion) | {"x0_mse": [0.5] * 30}
    path = x0_mse_path(checkpoint)
    path.write_text(json.dumps(stored))
    assert stored_x0_mse(checkpoint, diffusion).tolist() == [0.5] * 30
    for other in ({"clip_x0": False}, {"checkpoint_sha256": "0" * 64}):
        path.write_text(json.dumps(stored | other))
        with pytest.raises(UserError, match=r"is of another checkpoint.*ddpm evaluate ckpt="):
            stored_x0_mse(checkpoint, diffusion)
    path.write_text(json.dumps(stored)[:-5])
    with pytest.raises(UserError, match=r"is damaged.*ddpm evaluate ckpt="):
        stored_x0_mse(checkpoint, diffusion)


def test_other_variances_need_no_measurement(tiny_run):
    checkpoint = tiny_run / "checkpoints" / "last.ckpt"
    model = load_model(checkpoint)
    before = model.diffusion
    set_variance(model, None, checkpoint, Ancestral())
    assert model.diffusion is before
    set_variance(model, "large", checkpoint, Ancestral())
    assert isinstance(model.diffusion, GaussianDiffusion)
    assert torch.equal(model.diffusion.reverse_variance, before.betas)
    assert (model.diffusion.prediction, model.diffusion.clip_x0) == (before.prediction, before.clip_x0)


def test_a_number_out_of_range_is_refused():
    assert up_to("num_images", None, 5) == 5
    for value in (0, 6):
        with pytest.raises(UserError, match=f"num_images={value} must be from 1 to 5"):
            up_to("num_images", value, 5)


def test_images_are_spread_over_the_whole_set():
    images = torch.arange(101)
    assert spread(images, 5).tolist() == [0, 25, 50, 75, 100]
    assert torch.equal(spread(images, 200), images)
