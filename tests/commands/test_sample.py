"""`ddpm sample` from the tiny run of 30 timesteps."""

import json
import shutil

import numpy as np
from PIL import Image

from ddpm.data import to_uint8
from ddpm.diffusion import DDIM
from ddpm.training.building import load_model


def pixels(folder):
    with np.load(folder / "samples.npz") as file:
        return file["images"].astype(int)


def test_run_last_and_its_file_give_the_same_images(ddpm_here, tiny_run, tmp_path):
    images = []
    for i, ckpt in enumerate([tiny_run / "last", tiny_run / "checkpoints" / "last.ckpt"]):
        (tmp_path / str(i)).mkdir()
        answer = ddpm_here(
            "sample", f"ckpt={ckpt}", "sampler=ddim", "sampler.steps=5", "num_samples=5", "seed=3",
            f"batch_size={5 - 2 * i}", cwd=tmp_path / str(i),
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        (folder,) = (tmp_path / str(i) / "outputs" / "sample" / "tiny").iterdir()
        images.append(pixels(folder))
    model = load_model(tiny_run / "checkpoints" / "last.ckpt")
    expected = to_uint8(model.sample(5, DDIM(5), seed=3)).numpy().astype(int)
    assert expected.shape == (5, 1, 28, 28)
    for shown in images:  # the batch size changes the last bits, so a pixel may round to the next value
        assert np.abs(shown - expected).max() <= 1
    assert np.abs(images[0] - images[0][::-1]).max() > 50

    assert f"Results in outputs/sample/tiny/{folder.name}\n" in answer.stdout
    assert f"  ddpm evaluate ckpt={tiny_run / 'checkpoints' / 'last.ckpt'}\n" in answer.stdout
    with Image.open(folder / "samples.png") as picture:
        assert picture.size == (2 * (3 * 28 + 2) + 2, 3 * (3 * 28 + 2) + 2)
        cell = np.asarray(picture.convert("L"))[3 : 2 + 3 * 28 : 3, 3 : 2 + 3 * 28 : 3].astype(int)
    assert np.abs(cell - images[-1][0, 0]).max() <= 1
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["checkpoint"] == str(tiny_run / "checkpoints" / "last.ckpt")


def test_a_run_directory_means_its_best_checkpoint(ddpm_here, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "outputs" / "train" / "default" / "mine")
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")
    answer = ddpm_here("sample", "ckpt=outputs/train/default/mine", "num_samples=1", "seed=1")
    assert answer.returncode == 0, answer.stderr
    folder = tmp_path / "outputs" / "sample" / "default" / "mine"
    assert [path.name for path in folder.iterdir()] == ["best_num_samples-1_seed-1"]
