"""The models of the package draw what they are asked for."""

from pathlib import Path

import pytest
import torch

import ddpm
from ddpm.metrics.digit_classifier import FASHION_WEIGHTS, WEIGHTS, DigitClassifier

MODELS = Path(ddpm.__file__).parent / "pretrained"
WITHOUT_LABELS = ["mnist", "mnist_guided"]
CLASSIFIERS = {"mnist_conditional": WEIGHTS, "fashion_mnist": FASHION_WEIGHTS}  # of the models with labels


def test_each_model_is_tried():
    assert {path.parent.name for path in MODELS.glob("*/model.safetensors")} == {*WITHOUT_LABELS, *CLASSIFIERS}


@pytest.mark.parametrize(("name", "weights"), CLASSIFIERS.items(), ids=CLASSIFIERS)
def test_its_samples_are_of_the_classes_asked_for(name, weights):
    labels = torch.arange(50) % 10
    images = ddpm.load(name).sample(50, labels=labels, seed=0)
    found = DigitClassifier.pinned(weights)(images).logits.argmax(dim=1)
    assert (found == labels).float().mean() >= 0.8


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_samples_without_labels_are_of_all_digits(name):
    """Random images look like one or two digits to the classifier."""
    found = DigitClassifier.pinned(WEIGHTS)(ddpm.load(name).sample(50, seed=0)).logits.softmax(dim=1)
    assert found.max(dim=1).values.mean() >= 0.8
    assert len(found.argmax(dim=1).unique()) >= 9
