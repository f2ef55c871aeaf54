import pickle
import socket

import numpy as np
import pytest
import torch
from small_cifar10 import write_small

from ddpm.data import CIFAR10
from ddpm.data.cifar10 import FOLDER, TEST, TRAIN
from ddpm.errors import UserError


@pytest.mark.parametrize("key", [str, str.encode])
def test_the_images_and_labels_are_those_in_the_files(tmp_path, key):
    written = write_small(tmp_path, key=key)
    data = CIFAR10(tmp_path, batch_size=4, validation_size=6).ready()
    assert [len(data.split(name).labels) for name in ("train", "validation", "test")] == [34, 6, 8]
    train = [torch.cat(parts) for parts in zip(data.split("train"), data.split("validation"), strict=True)]
    for names, (images, labels) in ((TRAIN, train), (TEST, data.split("test"))):
        pixels = np.concatenate([written[name][0] for name in names])
        assert np.array_equal(images.numpy(), pixels.reshape(-1, 3, 32, 32))  # red, green, blue; row by row
        assert labels.tolist() == [label for name in names for label in written[name][1]]


class Hostile:
    def __reduce__(self):
        return print, ("run",)


PIXELS = np.zeros((8, 3072), np.uint8)
BAD = {
    "code": pickle.dumps({"data": Hostile(), "labels": []}),
    "cut": pickle.dumps({"data": PIXELS, "labels": [0] * 8})[:-100],
    "empty": b"",
    "no dict": pickle.dumps([1]),
    "no labels": pickle.dumps({"data": PIXELS}),
    "too few labels": pickle.dumps({"data": PIXELS, "labels": [0] * 7}),
    "other labels": pickle.dumps({"data": PIXELS, "labels": ["cat"] * 8}),
    "other sizes": pickle.dumps({"data": PIXELS[:, :784], "labels": [0] * 8}),
    "floats": pickle.dumps({"data": PIXELS / 255, "labels": [0] * 8}),
    "no arrays": pickle.dumps({"data": "text", "labels": [0] * 8}),
    "a page": b"<html>",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_damaged_or_hostile_file_is_named(tmp_path, content, capsys):
    write_small(tmp_path)
    path = tmp_path / FOLDER / "data_batch_3"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} holds no CIFAR-10 images in the Python format, or is damaged"):
        CIFAR10(tmp_path, batch_size=4, validation_size=6).ready()
    assert capsys.readouterr().out == ""


def test_missing_files_without_a_network_give_two_lines(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise socket.gaierror(-3, "no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(UserError, match=r"CIFAR-10 is not in .* downloading it failed .*\nSet DDPM_DATA_DIR"):
        CIFAR10(tmp_path / "new").ready()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("settings", [{"image_size": 64}, {"image_channels": 1}, {"validation_size": 0}])
def test_other_settings_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=r"image_channels=3 and image_size=32|validation_size=0"):
        CIFAR10(tmp_path, **settings)


def test_a_validation_set_that_leaves_no_training_image_is_refused(tmp_path):
    write_small(tmp_path)
    with pytest.raises(UserError, match=r"data.validation_size=40 leaves no image of 40"):
        CIFAR10(tmp_path, batch_size=4, validation_size=40).ready()


def test_a_run_trains_on_flipped_pictures(tmp_path, ddpm_here):
    write_small(tmp_path / "data")
    answer = ddpm_here(
        "train", "data=cifar10", "augmentation=flip", f"paths.data={tmp_path / 'data'}", "data.batch_size=4",
        "data.validation_size=6", "model=unet_tiny", "model.channels=8", "schedule=cosine", "schedule.num_steps=10",
        "trainer=cpu", "trainer.max_steps=2", "logger=none", "callbacks.pictures=null", "sampler.steps=5",
    )  # fmt: skip
    assert answer.returncode == 0, answer
