"""Commands with a class-conditional model: 30 timesteps, trained for two steps."""

import json
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from ddpm.commands.evaluate import quality_cost
from ddpm.commands.from_checkpoint import Loaded
from ddpm.commands.sample import edit, prepare
from ddpm.config import conf_dir, trusted_targets
from ddpm.data import MNISTMini, to_uint8
from ddpm.diffusion import DDIM, ClassifierFree, editing, vlb_terms
from ddpm.metrics.bound import measure_bounds
from ddpm.seeding import ImageNoise, Stream
from ddpm.training.building import load_model

FEW = ["trainer=cpu", "trainer.precision=32-true", "sampler=ddim", "sampler.steps=3"]


@pytest.fixture(scope="module")
def model(conditional_run):
    return load_model(conditional_run / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def digits():
    return MNISTMini(batch_size=8).ready().split("test")


def test_samples_have_the_labels_and_the_guidance_that_are_asked_for(ddpm_here, conditional_run, tmp_path, model):
    answer = ddpm_here("sample", f"ckpt={conditional_run}", *FEW, "labels=all", "num_samples=20", "guidance.scale=3.0")
    assert answer.returncode == 0, answer.stderr
    assert "20 images in" in answer.stdout
    assert "6 network evaluations each" in answer.stdout
    (folder,) = (tmp_path / "outputs" / "sample" / "conditional").iterdir()
    with np.load(folder / "samples.npz") as file:
        images = file["images"].astype(int)
    expected = to_uint8(model.sample(20, DDIM(3), seed=0, labels=range(10), guidance=3.0)).numpy()
    assert np.abs(images - expected).max() <= 1
    with Image.open(folder / "samples.png") as picture:
        assert picture.width > picture.height  # a column for each label
    assert not np.array_equal(images[:10], to_uint8(model.sample(10, DDIM(3), seed=0)).numpy())


def test_autoguidance_loads_a_weaker_checkpoint_by_the_rule_of_all(ddpm_here, tiny_run, conditional_run, tmp_path):
    weak = ["guidance=autoguidance", "guidance.scale=1.5"]
    answer = ddpm_here("sample", f"ckpt={tiny_run}", *FEW, *weak, f"guidance.ckpt={tiny_run}", "num_samples=2")
    assert answer.returncode == 0, answer.stderr
    (folder,) = (tmp_path / "outputs" / "sample" / "tiny").iterdir()
    plain = load_model(tiny_run / "checkpoints" / "last.ckpt").sample(2, DDIM(3), seed=0)  # it differs by nothing
    with np.load(folder / "samples.npz") as file:
        assert np.abs(file["images"].astype(int) - to_uint8(plain).numpy()).max() <= 1
    for ckpt, words in ((conditional_run, "differ in their number of classes"), ("nowhere", "there is no checkpoint")):
        answer = ddpm_here("sample", f"ckpt={tiny_run}", *FEW, *weak, f"guidance.ckpt={ckpt}")
        assert answer.returncode == 1
        assert words in answer.stderr
        assert "Traceback" not in answer.stderr
    assert "ddpm.commands.from_checkpoint.autoguidance" not in trusted_targets([conf_dir()])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ckpt={plain}", "labels=[1]"], "labels: the model is unconditional"),
        (["ckpt={plain}", "labels=all"], "labels: the model is unconditional"),
        (["ckpt={plain}", "guidance=cfg"], "guidance: the model is unconditional"),
        (["ckpt={run}", "labels=[0,10]"], "labels holds 10, but the model has the classes 0 to 9"),
        (["ckpt={run}", "labels=[]"], "labels is empty"),
        (["ckpt={run}", "labels=all", "num_samples=9"], "labels holds 10 labels for 9 images"),
        (["ckpt={run}", "labels=[0.5]"], "labels[0]=0.5 must be"),
        (["ckpt={run}", "labels=some"], "labels=some must be"),
        (["ckpt={run}", "guidance=cfg"], "needs labels"),
        (["ckpt={run}", "labels=3", "guidance.scale=nan"], "guidance.scale=NaN must be a finite number"),
        (["ckpt={run}", "labels=3", "guidance.scale=-1.0"], "guidance: scale must be a finite number, at least 0"),
        (["ckpt={run}", "labels=3", "guidance.scale=true"], "guidance.scale=true must be a number"),
        (["ckpt={run}", "labels=3", "guidance=cfg", "guidance.interval=[9,3]"], "interval must be the first and the"),
        (["ckpt={run}", "labels=3", "guidance=cfg", "guidance.interval=[3,30]"], "beyond the last timestep, 29"),
        (["ckpt={run}", "labels=3", "guidance.interval=[3,9]"], "interval=[3, 9] has no effect with scale=1"),
        (["ckpt={run}", "labels=3", "guidance=cfg", "guidance.interval=[3,3]", "sampler.steps=2"], "has none of the"),
        (["ckpt={run}", "mode=sdedit", "labels=3"], "labels and mode do not go together"),
        (["ckpt={run}", "guidance=autoguidance"], "guidance.ckpt"),
    ],
    ids=str,
)
def test_mistakes(ddpm_here, tiny_run, conditional_run, tmp_path, overrides, words):
    given = [word.format(plain=tiny_run, run=conditional_run) for word in overrides]
    answer = ddpm_here("sample", *given, "trainer=cpu")
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert words in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_training_refuses_another_number_of_classes(ddpm_here, tmp_path):
    tiny = ["data=mnist_mini", "model=unet_tiny", "model.channels=8", "trainer=cpu"]
    for overrides, words in (
        (["model.num_classes=9"], "model.num_classes=9, but the data has 10 classes: set model.num_classes=10"),
        (["model.num_classes=0"], "num_classes must be 1 or more"),
        (["module.label_dropout=0.1"], "label_dropout needs a class-conditional network: set model.num_classes"),
    ):
        answer = ddpm_here("train", *tiny, *overrides)
        assert answer.returncode == 1
        assert words in answer.stderr
    assert list(tmp_path.iterdir()) == []


def edited(run, model, *overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("sample", ["data=mnist_mini", *overrides])
    checkpoint = run / "checkpoints" / "last.ckpt"
    fabric = L.Fabric(accelerator="cpu", devices=1, precision="32-true")
    return edit(cfg, Loaded(checkpoint, model, fabric, Path("nowhere")), prepare(cfg, checkpoint, model)).images


def test_a_mode_uses_the_labels_of_its_images_and_guidance(conditional_run, model, digits):
    x0, own = digits.images[[3, 8]].float() / 127.5 - 1, digits.labels[[3, 8]]
    rows = torch.tensor([0, 0, 1, 1])
    noise = ImageNoise(Stream.SAMPLING, 0, indices=range(4))
    network = partial(ClassifierFree(2.0)(model.ema, 10), labels=own[rows])
    expected = editing.sdedit(network, model.diffusion, DDIM(6), x0[rows], 0.5, noise).clamp(-1, 1)
    few = ["images=[3,8]", "sampler=ddim", "sampler.steps=6"]
    guided = ["guidance=cfg", "num_samples=2", "mode.strength=0.5"]
    for batch_size in (3, 256):  # in one batch, and in parts
        images = edited(conditional_run, model, "mode=sdedit", *few, *guided, f"batch_size={batch_size}")
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-3)

    images = edited(conditional_run, model, "mode=interpolate", *few, "num_samples=3")
    with torch.no_grad():
        same_noise = ImageNoise(Stream.SAMPLING, 0, indices=[0, 0])
        x_T = editing.encode(partial(model.ema, labels=own), model.diffusion, DDIM(6), x0, same_noise)
        ends = DDIM(6)(partial(model.ema, labels=own), model.diffusion, x_T).clamp(-1, 1)
    torch.testing.assert_close(images[[0, 2]], ends, rtol=0, atol=1e-3)


def test_the_bound_is_that_of_each_image_with_its_label(model, digits):
    images, labels = digits.images[:6], digits.labels[:6]
    (bound,) = measure_bounds(model.ema, {"small": model.diffusion}, images, 2, 0, 4, labels=labels).values()
    noise, x0 = ImageNoise(Stream.EVALUATION, 0, indices=range(6)), images.float() / 127.5 - 1
    with torch.no_grad():
        terms = vlb_terms(partial(model.ema, labels=labels), model.diffusion, x0, bound.timesteps, noise)
    torch.testing.assert_close(bound.terms.kl, terms.kl.double(), rtol=1e-4, atol=1e-6)
    other = measure_bounds(model.ema, {"small": model.diffusion}, images, 2, 0, 4, labels=(labels + 1) % 10)["small"]
    assert not torch.equal(other.terms.kl, bound.terms.kl)


@pytest.mark.usefixtures("real_digits")
@pytest.mark.slow
def test_evaluation_draws_the_labels_of_the_training_set_and_counts_those_as_asked(
    ddpm_here, conditional_run, tmp_path
):
    likelihood = ["num_images=8", "timesteps_per_image=2", "evaluate.train_images=8", "evaluate.empirical_images=0"]
    for scale, more in ((1.0, ["num_images=0"]), (2.0, [*likelihood, "evaluate.x0_mse_draws=4"])):
        answer = ddpm_here(
            "evaluate", f"ckpt={conditional_run}", *FEW, *more, "num_samples=100", f"guidance.scale={scale}"
        )
        assert answer.returncode == 0, answer.stderr
        assert "label accuracy" in answer.stdout
    folders = list((tmp_path / "outputs" / "evaluate" / "conditional").iterdir())
    found = {metrics["guidance_scale"]: metrics for metrics in map(read, folders)}
    assert 0 <= found[1.0]["quality/as_asked"] <= 1
    assert found[1.0]["network_evaluations"] == 3
    assert found[2.0]["network_evaluations"] == 6
    assert found[2.0]["guidance"] == "cfg"
    assert found[2.0]["bpd/total"] > 0

    quality_cost.compare(folders)
    assert {"guidance_scale.png", "quality_cost.png"} <= {path.name for path in folders[0].parent.iterdir()}
    header = (folders[0].parent / "quality_cost.csv").read_text().splitlines()[0]
    assert "guidance_scale" in header
    assert "quality/as_asked" in header


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_denoise_gives_the_network_the_labels_of_the_images(ddpm_here, conditional_run, tmp_path):
    answer = ddpm_here("denoise", f"ckpt={conditional_run}", *FEW[:2], "image_index=3")
    assert answer.returncode == 0, answer.stderr
    (folder,) = (tmp_path / "outputs" / "denoise" / "conditional").iterdir()
    assert (folder / "denoise.html").stat().st_size > 10_000


def test_the_likelihood_alone_needs_no_sample_without_a_label(ddpm_here, train_tiny, tmp_path):
    run = train_tiny(tmp_path / "always", "model.num_classes=10", "module.label_dropout=0")
    likelihood = ["num_samples=0", "num_images=1", "evaluate.train_images=0", "evaluate.empirical_images=0"]
    answer = ddpm_here("evaluate", f"ckpt={run}", "trainer=cpu", *likelihood, "evaluate.x0_mse_draws=4")
    assert answer.returncode == 0, answer.stderr
    answer = ddpm_here("sample", f"ckpt={run}", *FEW, "num_samples=2")
    assert "the model was trained with label_dropout=0" in answer.stderr
