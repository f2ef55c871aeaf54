"""The interface of features, in which samples are compared with real images, and the pinned classifier as features."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ddpm.data import to_model_range
from ddpm.metrics.digit_classifier import FASHION_WEIGHTS, IMAGE_SHAPE, WEIGHTS, Activations, DigitClassifier

BATCH_SIZE = 100  # images; larger batches are slower on a CPU


class Features(Protocol):
    """Features of images. `ddpm evaluate` compares samples with real images in the features of its config."""

    def __call__(self, images: Tensor) -> Tensor | Activations:
        """Return the features [B, D] of uint8 images [B, C, H, W]; those of an image depend on no other image.

        A network that classifies the images returns `Activations`: the features and the logits. An `nn.Module` is
        moved to the device of the command, and gets images there.

        Raises:
            ValueError: the features are not made for images of this shape.
        """


class Digits:
    """The features of a small pinned classifier of MNIST, for grey images of 28×28 pixels."""

    weights: Path = WEIGHTS

    def __init__(self) -> None:
        self.network = DigitClassifier.pinned(self.weights)

    def __call__(self, images: Tensor) -> Activations:
        if images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"they are made for grey images, {list(IMAGE_SHAPE)}.")
        activations: Activations = self.network(to_model_range(images))
        return activations


class Fashion(Digits):
    """The features of the same network, trained on Fashion-MNIST."""

    weights = FASHION_WEIGHTS


@torch.no_grad()
def features_of(features: Features, images: Tensor) -> Activations:
    """Return features, and logits if there are any, of uint8 images [N, C, H, W], on the CPU.

    Raises:
        ValueError: a feature is NaN or infinite.
    """
    outputs, logits = [], []
    weight = next(features.parameters(), None) if isinstance(features, nn.Module) else None
    for batch in images.split(BATCH_SIZE):
        output = features(batch if weight is None else batch.to(weight.device))
        if isinstance(output, Activations):
            if output.logits is not None:
                logits.append(output.logits.cpu())
            output = output.features
        is_half = output.dtype in (torch.float16, torch.bfloat16)
        outputs.append(output.float().cpu() if is_half else output.cpu())  # NumPy has no bfloat16
    activations = Activations(torch.cat(outputs), torch.cat(logits) if logits else None)
    if not activations.features.isfinite().all():
        raise ValueError("the features of some images are NaN or infinite.")
    return activations


def check_features(features: Features, shape: tuple[int, int, int]) -> None:
    """Raise a ValueError if the features cannot be computed of images of this shape, or are not one row an image."""
    try:
        output = features_of(features, torch.zeros(2, *shape, dtype=torch.uint8)).features
    except Exception as error:
        raise ValueError(f"the features cannot be computed of images {list(shape)}: {error}") from error
    if output.ndim != 2 or len(output) != 2 or output.numel() == 0 or not output.is_floating_point():
        raise ValueError(f"the features of 2 images are {output.dtype} {list(output.shape)}: floats [2, D] are needed.")
