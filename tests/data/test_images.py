from itertools import islice

import lightning as L
import pytest
import torch

from ddpm.data import ImageData, Split, to_model_range, to_uint8
from ddpm.errors import UserError


class Numbers(ImageData):
    """Image i has the value i in all pixels and the label i."""

    def load(self):
        images = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(60, 2, 4, 6)
        splits = zip(("train", "validation", "test"), images.split([40, 13, 7]), strict=True)
        return {name: Split(part, part[:, 0, 0, 0].long()) for name, part in splits}


def numbers(batch_size=8, image_channels=2, image_size=(4, 6), **kwargs):
    data = Numbers(batch_size, image_channels, image_size, **kwargs)
    data.setup()
    return data


def test_all_256_values_survive_the_model_range():
    values = torch.arange(256, dtype=torch.uint8)
    scaled = to_model_range(values)
    assert scaled.dtype == torch.float32
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert torch.equal(to_uint8(scaled), values)


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-3.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1.0, 7.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_no_pixels(value):
    with pytest.raises(UserError, match="NaN or infinity"):
        to_uint8(torch.tensor([0.0, value]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_uint8_with_labels(num_workers):
    data = numbers(num_workers=num_workers)
    seen = []
    for images, labels in islice(data.train_dataloader(), 5):  # an epoch
        assert images.dtype == torch.uint8
        assert images.shape == (8, 2, 4, 6)
        assert labels.dtype == torch.int64
        assert torch.equal(images[:, 1, 2, 3], labels)
        seen += labels.tolist()
    assert sorted(seen) == list(range(40))
    assert seen != list(range(40))


@pytest.mark.parametrize(("name", "first", "end"), [("validation", 40, 53), ("test", 53, 60)])
def test_evaluation_is_whole_and_in_order(name, first, end):
    data = numbers()
    loader = data.val_dataloader() if name == "validation" else data.test_dataloader()
    assert torch.cat([labels for _, labels in loader]).tolist() == list(range(first, end))
    assert data.split(name).labels.tolist() == list(range(first, end))


def test_the_image_shape_is_known_before_the_data():
    assert Numbers(8, 2, (4, 6)).image_shape == (2, 4, 6)
    assert Numbers(8, 3, 32).image_shape == (3, 32, 32)


def test_loaders_leave_the_global_stream_of_random_numbers_alone():
    data = numbers()
    state = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(islice(loader, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_must_not_be_larger_than_the_training_set():
    with pytest.raises(UserError, match=r"data.batch_size=41 is more than the 40 images for training"):
        numbers(batch_size=41)


@pytest.mark.parametrize("settings", [{"image_channels": 1}, {"image_size": (6, 4)}])
def test_images_of_another_shape_than_said_are_refused(settings):
    with pytest.raises(UserError, match=r"the train images are torch.uint8 \[2, 4, 6\], not"):
        numbers(**settings)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="must be a whole number"):
        Numbers(0, 2, (4, 6))


def test_images_on_the_device_are_fetched_there():
    data = numbers(on_device=True)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.strategy._root_device = torch.device("meta")  # shapes and devices without numbers
    images, labels = next(iter(data.val_dataloader()))
    assert (images.device.type, labels.device.type) == ("meta", "meta")
    assert images.shape == (8, 2, 4, 6)
    assert data.split("validation").images.device.type == "cpu"


def test_batches_from_the_device_are_those_of_the_cpu(device):
    found = []
    for accelerator, on_device in (("cpu", False), (device, False), (device, True)):
        data = numbers(on_device=on_device)
        data.trainer = L.Trainer(accelerator=accelerator, logger=False, enable_checkpointing=False)
        images, labels = zip(*islice(data.train_dataloader(), 3), strict=True)
        assert images[0].device.type == (accelerator if on_device else "cpu")
        found.append((torch.cat(images).cpu(), torch.cat(labels).cpu()))
    for images, labels in found[1:]:
        assert torch.equal(images, found[0][0])
        assert torch.equal(labels, found[0][1])


def test_a_number_of_workers_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="on_device=true needs num_workers=0"):
        numbers(on_device=True, num_workers=2)
    with pytest.raises(ValueError, match="num_workers=-1 must be at least 0"):
        numbers(num_workers=-1)


def test_a_path_that_is_too_long_for_the_workers_sockets_is_refused(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/" + "x" * 71)
    with pytest.raises(ValueError, match="Set a shorter TMPDIR, or num_workers=0"):
        numbers(num_workers=2)
    numbers(num_workers=0)
    monkeypatch.setattr("tempfile.tempdir", "/" + "x" * 70)
    numbers(num_workers=2)
