"""The models of the package draw what they are asked for."""

from pathlib import Path

import pytest
import torch

import ddpm
from ddpm.metrics.digit_classifier import FASHION_WEIGHTS, WEIGHTS, DigitClassifier

MODELS = Path(ddpm.__file__).parent / "pretrained"
CLASSIFIERS = {"mnist_conditional": WEIGHTS, "fashion_mnist": FASHION_WEIGHTS}


def test_each_model_is_tried():
    assert {path.parent.name for path in MODELS.glob("*/model.safetensors")} == CLASSIFIERS.keys()


@pytest.mark.parametrize(("name", "weights"), CLASSIFIERS.items(), ids=CLASSIFIERS)
def test_its_samples_are_of_the_classes_asked_for(name, weights):
    labels = torch.arange(50) % 10
    images = ddpm.load(name).sample(50, labels=labels, seed=0)
    found = DigitClassifier.pinned(weights)(images).logits.argmax(dim=1)
    assert (found == labels).float().mean() >= 0.8
