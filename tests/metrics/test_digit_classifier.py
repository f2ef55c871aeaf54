import shutil

import pytest
import torch

from ddpm.data import MNIST, FashionMNIST, MNISTMini
from ddpm.metrics.digit_classifier import (
    FASHION_WEIGHTS,
    NUM_FEATURES,
    WEIGHTS,
    DigitClassifier,
    read_card,
)
from ddpm.metrics.features import Digits, Fashion, features_of


def accuracy(split):
    logits = features_of(Digits(), split.images).logits
    return (logits.argmax(dim=1) == split.labels).double().mean().item()


def test_the_pinned_network_classifies_the_embedded_digits():
    data = MNISTMini()
    data.setup()
    assert accuracy(data.split("test")) >= 0.99


def test_the_pinned_network_has_the_accuracy_on_its_card(real_mnist):
    data = MNIST(real_mnist)
    data.setup()
    measured = accuracy(data.split("test"))
    assert measured >= 0.994
    assert measured == pytest.approx(read_card()["test_accuracy"], abs=2e-4)  # a digit or two hang on rounding


def test_the_pinned_network_of_fashion_has_the_accuracy_on_its_card(fashion_mnist):
    data = FashionMNIST(fashion_mnist)
    data.setup()
    test = data.split("test")
    correct = features_of(Fashion(), test.images).logits.argmax(dim=1) == test.labels
    assert correct.double().mean().item() == pytest.approx(read_card(FASHION_WEIGHTS)["test_accuracy"], abs=5e-4)


def test_weights_are_small():
    assert WEIGHTS.stat().st_size <= 1_000_000
    assert FASHION_WEIGHTS.stat().st_size <= 1_000_000


def test_weights_with_another_checksum_are_refused(tmp_path):
    weights = tmp_path / WEIGHTS.name
    for path in (WEIGHTS, WEIGHTS.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    DigitClassifier.pinned(weights)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        DigitClassifier.pinned(weights)


def test_activations_do_not_depend_on_the_batch_size():
    images = torch.randint(256, (13, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    whole = features_of(Digits(), images)
    parts = [features_of(Digits(), part) for part in images.split(3)]
    assert whole.features.shape == (13, NUM_FEATURES)
    for one, other in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(one, torch.cat(other), rtol=1e-5, atol=1e-5)
