"""The pinned classifiers that give features and class probabilities to every measure of sample quality.

The features of an Inception network trained on ImageNet mean little on digits. This network is small and was trained
on MNIST, and again on Fashion-MNIST, by `scripts/train_digit_classifier.py`. The weights are part of the package, so
that results stay comparable.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Self

import safetensors.torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("digit_classifier.safetensors")
FASHION_WEIGHTS = Path(__file__).with_name("fashion_classifier.safetensors")

IMAGE_SHAPE = (1, 28, 28)
NUM_FEATURES = 64
NUM_CLASSES = 10


class Activations(NamedTuple):
    """Features of N images, and logits if the network classifies."""

    features: Tensor
    """[N, D], such as the output of the last hidden layer"""
    logits: Tensor | None = None
    """[N, classes]; None if the network does not classify"""


class DigitClassifier(nn.Module):
    """A convolutional network with batch norm for grey digits, float32 [B, 1, 28, 28] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, NUM_FEATURES, bias=False),
            nn.BatchNorm1d(NUM_FEATURES),
            nn.ReLU(),
        )
        self.classes = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    @classmethod
    def pinned(cls, weights: Path = WEIGHTS) -> Self:
        """Return the trained network, frozen.

        Raises:
            ValueError: the SHA-256 of the weights differs from that in the JSON file beside them.
        """
        data = weights.read_bytes()
        if hashlib.sha256(data).hexdigest() != read_card(weights)["sha256"]:
            raise ValueError(
                f"{weights} is not the file that {weights.stem}.json describes (its SHA-256 differs): "
                "install ddpm again, or remake both with scripts/train_digit_classifier.py."
            )
        network = cls()
        network.load_state_dict(safetensors.torch.load(data))
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Activations:
        features = self.hidden(images)
        return Activations(features, self.classes(features))


def read_card(weights: Path = WEIGHTS) -> dict[str, Any]:
    """Return the JSON file beside the weights: recipe, test accuracy, SHA-256, versions."""
    return json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
