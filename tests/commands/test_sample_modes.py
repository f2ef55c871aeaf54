"""The modes of `ddpm sample` that start from images, from the tiny run of 30 timesteps."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from ddpm.commands.edits import Chain, Inpaint, Interpolate, SDEdit
from ddpm.commands.from_checkpoint import Loaded
from ddpm.commands.sample import draw, edit, prepare
from ddpm.config import build, conf_dir
from ddpm.data import MNISTMini, to_uint8
from ddpm.data.pictures import image_table
from ddpm.diffusion import DDIM, Ancestral, DPMSolverPP, SDEDPMSolverPP, editing
from ddpm.errors import UserError
from ddpm.seeding import ImageNoise, Stream
from ddpm.training.building import load_model

MODES = sorted(path.stem for path in (conf_dir() / "mode").glob("*.yaml"))


def composed(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("sample", list(overrides))


@pytest.fixture(scope="module")
def loaded(tiny_run):
    checkpoint = tiny_run / "checkpoints" / "last.ckpt"
    fabric = L.Fabric(accelerator="cpu", devices=1, precision="32-true")
    return Loaded(checkpoint, load_model(checkpoint), fabric, Path("nowhere"))


@pytest.fixture(scope="module")
def digits():
    data = MNISTMini(batch_size=8)
    data.setup()
    return data.split("test").images


def made(loaded, *overrides):
    cfg = composed("data=mnist_mini", *overrides)
    job = prepare(cfg, loaded.checkpoint, loaded.model)
    assert job.inputs is not None
    return edit(cfg, loaded, job).images, job.inputs


@pytest.mark.parametrize("name", MODES)
def test_only_a_mode_adds_the_settings_of_images(name):
    cfg = composed(f"mode={name}", f"data={'mnist_mini' if name == 'inpaint' else 'mnist'}", "paths.data=there")
    assert isinstance(build(cfg.mode), (Inpaint, Interpolate, SDEdit))
    assert cfg.data._target_ == ("ddpm.data.MNISTMini" if name == "inpaint" else "ddpm.data.MNIST")
    assert composed(f"mode={name}").data is None
    assert {"images", "data"} & composed().keys() == set()
    assert "data" not in composed().paths


def test_interpolation_goes_from_an_image_to_the_next(loaded, digits):
    images, inputs = made(loaded, "mode=interpolate", "images=[3,8,5]", "num_samples=4", "sampler.steps=30")
    assert images.shape == (8, 1, 28, 28)
    assert torch.equal(to_uint8(inputs), digits[[3, 8, 5]])
    first, second = images.unflatten(0, (2, 4))
    for ends, pair in ((first, [0, 1]), (second, [1, 2])):
        decoded = ends[[0, 3]]
        distances = (decoded[:, None] - inputs[None]).square().mean(dim=(2, 3, 4))
        assert distances.argmin(dim=1).tolist() == pair  # this network decodes poorly after two training steps
    torch.testing.assert_close(first[3], second[0], rtol=0, atol=1e-4)
    assert (first[0] - first[1]).abs().max() > 0.1

    chain = (loaded.model.ema, loaded.model.diffusion, DDIM(30))
    same_noise = ImageNoise(Stream.SAMPLING, 0, indices=[0, 0])
    x_T = editing.slerp(*editing.encode(*chain, inputs[:2], same_noise).split(1), torch.tensor([1 / 3]))
    between = DDIM(30)(*chain[:2], x_T).clamp(-1, 1)
    torch.testing.assert_close(first[1:2], between, rtol=0, atol=1e-3)


def test_inpainting_and_sdedit_call_the_library_with_the_noise_of_each_image(loaded):
    model, seed = loaded.model, 4
    _, inputs = made(loaded, "mode=sdedit", "images=[3,8]", "num_samples=3", "seed=4", "mode.strength=0.3")
    x0 = inputs.repeat_interleave(3, dim=0)
    parts, fast = (model.ema, model.diffusion), SDEDPMSolverPP(10, spacing="karras")
    for overrides, expected in (
        (["mode=sdedit", "mode.strength=0.3"], lambda noise: editing.sdedit(*parts, fast, x0, 0.3, noise)),
        (
            ["mode=inpaint", "mode.mask=bottom", "mode.jump=4", "mode.repeats=2"],
            lambda noise: editing.inpaint(*parts, Ancestral(10), x0, editing.region("bottom", 28, 28), noise, 4, 2),
        ),
    ):
        for batch_size in (256, 4):
            sizes = set[int]()
            hook = model.ema.register_forward_hook(lambda _, arguments, __, s=sizes: s.add(len(arguments[0])))
            images, _ = made(
                loaded, *overrides, "images=[3,8]", "num_samples=3", f"seed={seed}", "sampler.steps=10",
                f"batch_size={batch_size}",
            )  # fmt: skip
            hook.remove()
            assert sizes == ({6} if batch_size == 256 else {4, 2})
            wanted = expected(ImageNoise(Stream.SAMPLING, seed, indices=range(6))).clamp(-1, 1)
            torch.testing.assert_close(images, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("mode", "sampler"),
    [
        (Interpolate(), DDIM(7)),
        (Interpolate(), DPMSolverPP(7, spacing="karras")),
        (Inpaint("left", jump=3, repeats=2), Ancestral(8)),
        (SDEdit(0.5), DDIM(9)),
        (SDEdit(1.0), Ancestral()),
    ],
)
def test_the_announced_network_evaluations_are_made(loaded, mode, sampler):
    calls = 0

    def denoise(x_t, t):
        nonlocal calls
        calls += len(x_t)
        return loaded.model.ema(x_t, t)

    chain = Chain(denoise, loaded.model.diffusion, sampler)
    announced = mode.evaluations(chain, 3, 4)
    edited = mode(chain, torch.zeros(3, 1, 28, 28), 4, seed=0)
    assert calls == announced
    assert len(mode.captions([5, 6, 7])) == len(edited.images)
    assert sum(len(titles) for titles, _ in edited.groups()) == sum(images.shape[1] for _, images in edited.groups())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_has_every_image_in_its_row(channels):
    shades = torch.linspace(-1, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, channels, 8, 8)
    picture = image_table([(["one"], shades[:, :1]), (["two", "three"], shades[:, 1:])], ["first", "second"])
    pixels = np.asarray(picture.convert("L"))
    large = [[np.flatnonzero((pixels == level).sum(axis=axis) >= 64)[0] for axis in (0, 1)] for level in (0, 51, 153)]
    (left, top), (left_of_two, top_of_two), (left_below, top_below) = large
    assert top == top_of_two < top_below
    assert left == left_below < left_of_two
    assert [pixels[top_below + 32, left + 32 + shift] for shift in (0, 81, 148)] == [153, 204, 255]
    assert (pixels[:, :left] == 255).mean() < 0.99  # the captions


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["mode=interpolate", "sampler=ancestral"], "mode: an image is encoded for a deterministic sampler"),
        (["mode=interpolate", "images=[1]"], "mode: interpolation needs two images"),
        (["mode=interpolate", "num_samples=1"], "mode: interpolation needs two images"),
        (["mode=inpaint", "mode.mask=middle"], "mask=middle is none of left, right"),
        (["mode=inpaint", "mode.jump=0"], "mode: .*at least 1"),
        (["mode=sdedit", "mode.strength=0"], "mode: strength is above 0"),
        (["mode=sdedit", "mode.strength=1.5"], "mode: strength .* at most 1"),
        (["mode=sdedit", "mode.strength=0.01"], "mode: strength=0.01 is too low"),
        (["mode=sdedit", "images=[2,2000]"], "images holds 2000, but the test set has the images 0 to 1999"),
        (["mode=sdedit", "images=[-1]"], "images holds -1"),
        (["mode=sdedit", "images=[]"], r"as in images=\[0,3\]"),
    ],
)
def test_mistakes_are_refused(loaded, overrides, words):
    with pytest.raises(UserError, match=words):
        made(loaded, "sampler.steps=9", *overrides)


@pytest.mark.parametrize("mode", ["null", "sdedit"])
def test_a_network_that_returns_nan_ends_in_one_line(loaded, mode):
    model = load_model(loaded.checkpoint)
    torch.nn.init.constant_(next(model.ema.parameters()), torch.nan)
    cfg = (
        composed("data=mnist_mini", f"mode={mode}", "sampler.steps=9") if mode != "null" else composed("num_samples=2")
    )
    job = prepare(cfg, loaded.checkpoint, model)
    with pytest.raises(UserError, match=r"NaN or infinity|not finite") as caught:
        (edit if job.mode else draw)(cfg, loaded._replace(model=model), job)
    assert "\n" not in str(caught.value)


def test_inpainting_keeps_the_known_part_of_the_image(ddpm_here, tiny_run, tmp_path, digits):
    answer = ddpm_here(
        "sample", f"ckpt={tiny_run}/last", "mode=inpaint", "mode.mask=left", "images=[3,1]", "num_samples=2",
        "sampler.steps=6", "mode.repeats=2",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    (folder,) = (tmp_path / "outputs" / "sample" / "tiny").iterdir()
    with np.load(folder / "samples.npz") as file:
        images, inputs = file["images"], file["inputs"]
    assert (inputs == digits[[3, 1]].numpy()).all()
    assert images.shape == (4, 1, 28, 28)
    assert (images[:, :, :, 14:] == inputs[[0, 0, 1, 1], :, :, 14:]).all()
    assert (images[:, :, :, :14] != inputs[[0, 0, 1, 1], :, :, :14]).mean() > 0.3
    assert "4 images in " in answer.stdout
    assert "12 network evaluations each" in answer.stdout
    assert "inputs, uint8 [2, 1, 28, 28]" in answer.stdout
    with Image.open(folder / "samples.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 100
