"""Sample quality of colour pictures, in features of published networks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_cifar10 import write_small

QUALITY = ["trainer=cpu", "num_images=0", "num_samples=100", "sampler.steps=2"]
COMPARED = ("fd_train", "fd_test", "kid", "sliced_wasserstein", "precision", "recall", "density", "coverage")
MEMORISED = ("pixel_distance", "pixel_copies", "feature_distance", "feature_copies")


@pytest.fixture
def cifar10(tmp_path):
    """Overrides for 400 training and 100 test images in the format of CIFAR-10."""
    write_small(tmp_path / "data", count=100)
    return ["data=cifar10", f"paths.data={tmp_path}/data", "data.validation_size=100"]


@pytest.fixture
def small_vit(tmp_path):
    """Overrides for the code of features=dinov2 with a small network of random weights in place of DINOv2."""
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "vit.pth")
    settings = {"model": "test_vit", "image_size": 32, "weights": tmp_path / "vit.pth"}
    return ["features=dinov2", *(f"features.{key}={value}" for key, value in settings.items())]


def metrics_of(tmp_path):
    (file,) = tmp_path.glob("outputs/evaluate/*/*/metrics.json")
    with Image.open(file.with_name("closest.png")) as picture:
        assert picture.width > 100
    return json.loads(file.read_text())


def is_complete(metrics):
    """Whether all measures but those of classes are there, and those with a floor have a ratio."""
    names = [f"{name}{end}" for name in (*COMPARED, *MEMORISED) for end in ("", "_se", "_real", "_real_se")]
    names += [f"{name}_ratio" for name in ("fd_train", "fd_test", "sliced_wasserstein")]
    return all(metrics[f"quality/{name}"] is not None for name in names) and "quality/class_tv" not in metrics


def test_a_model_of_cifar10_gets_the_whole_table(ddpm_here, train_tiny, tmp_path, cifar10, small_vit):
    run = train_tiny(tmp_path / "run", *cifar10)
    answer = ddpm_here("evaluate", f"ckpt={run}", *cifar10, *small_vit, *QUALITY)
    assert answer.returncode == 0, answer.stderr
    metrics = metrics_of(tmp_path)
    assert is_complete(metrics)
    assert metrics["features"] == f"dinov2 model=test_vit image_size=32 weights={tmp_path}/vit.pth"

    without = ddpm_here("evaluate", f"ckpt={run}", *cifar10, *QUALITY)
    assert without.returncode == 1
    assert "set features=inception or features=dinov2" in without.stdout


def test_given_pictures_of_another_shape_than_digits(ddpm_here, tmp_path, cifar10, small_vit):
    pictures = np.random.default_rng(1).integers(256, size=(120, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "colour.npy", pictures)
    answer = ddpm_here("evaluate", "samples=colour.npy", *cifar10, *small_vit, "trainer=cpu")
    assert answer.returncode == 0, answer.stderr
    assert "inverted" not in answer.stdout  # a doubt about digits
    metrics = metrics_of(tmp_path)
    assert is_complete(metrics)
    assert metrics["quality/fd_train_ratio"] == pytest.approx(1, abs=0.4)  # all are noise of the same distribution
    refused = ddpm_here("evaluate", "samples=colour.npy", "features=digits")
    assert refused.returncode == 1
    assert "has the shape [120, 32, 32, 3]: expected [N, 1, 28, 28]" in refused.stderr
    assert "Without data=NAME, samples are compared with MNIST." in refused.stderr


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (["features=digits"], "the features cannot be computed of images [3, 32, 32]: they are made for grey images"),
        (["features=inception"], "the weights are missing, and downloading them failed"),
    ],
)
def test_features_that_cannot_be_used_are_refused_before_anything_is_drawn(
    ddpm_here, tmp_path, monkeypatch, cifar10, features, words
):
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(source, "URL_INCEPTION_V3", "http://weights.invalid/inception-6726825d.pth")
    np.save(tmp_path / "colour.npy", np.full((120, 32, 32, 3), 200, np.uint8))
    answer = ddpm_here("evaluate", "samples=colour.npy", *cifar10, *features)
    assert answer.returncode == 1
    assert words in answer.stderr
    assert len(answer.stderr.splitlines()) <= 2
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "outputs").exists()
