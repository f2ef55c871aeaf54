#!/usr/bin/env python
"""Trains a classifier whose features measure sample quality, and writes its weights and their card.

    python scripts/train_digit_classifier.py --data DIR
    python scripts/train_digit_classifier.py --data DIR --of fashion

DIR holds MNIST/raw or FashionMNIST/raw (downloaded if absent). Takes about ten minutes on one CPU core. Trains on all
60,000 training images and keeps the weights of the last step. The test images are used only once, for the accuracy on
the card.
"""

import argparse
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from ddpm.data import MNIST, FashionMNIST, to_model_range
from ddpm.metrics.digit_classifier import FASHION_WEIGHTS, WEIGHTS, DigitClassifier
from ddpm.runs.files import replace_file
from ddpm.seeding import Stream, generator, seed_at

DIGITS: dict[str, Any] = {
    "epochs": 15,
    "batch_size": 128,
    "optimizer": "AdamW",
    "max_lr": 4e-3,
    "schedule": "one cycle",
    "weight_decay": 0.05,
    "rotation_degrees": 12.0,  # this and the next three: maximum of a uniform distribution
    "shift_pixels": 2.5,
    "scale": 0.12,
    "shear": 0.12,
    "precision": "bfloat16 autocast",
}
FASHION = DIGITS | {
    "epochs": 6,
    "rotation_degrees": 4.0,
    "shift_pixels": 1.5,
    "scale": 0.06,
    "shear": 0.04,
    "flip": 0.5,
}
SETS = {"digits": (MNIST, DIGITS, WEIGHTS), "fashion": (FashionMNIST, FASHION, FASHION_WEIGHTS)}
"""by the choice of --of: the data, the recipe and the file of the weights"""


def distorted(images: Tensor, recipe: dict[str, Any], random: torch.Generator) -> Tensor:
    """Return images [B, 1, H, W] in [-1, 1] with a small random rotation, shift, scale and shear each.

    If the recipe has `flip`, this share of the images is mirrored left to right.
    """

    def uniform(largest: float, *shape: int) -> Tensor:
        return largest * (2 * torch.rand(len(images), *shape, generator=random) - 1)

    angle = torch.deg2rad(uniform(recipe["rotation_degrees"]))
    scale, shear = 1 + uniform(recipe["scale"]), uniform(recipe["shear"])
    shift = uniform(recipe["shift_pixels"] * 2 / images.shape[-1], 2)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, shear - sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    if "flip" in recipe:
        mirrored = torch.rand(len(images), 1, 1, 1, generator=random) < recipe["flip"]
        images = torch.where(mirrored, images.flip(-1), images)
    return grid_sample(images + 1, grid, align_corners=False) - 1  # outside the image is black, -1


def train(images: Tensor, labels: Tensor, recipe: dict[str, Any], seed: int) -> DigitClassifier:
    torch.manual_seed(seed_at(Stream.INITIAL_WEIGHTS, seed))
    # Convolutions of channels_last tensors are a third faster on a CPU.
    network = DigitClassifier().to(memory_format=torch.channels_last)
    steps = len(images) // recipe["batch_size"]
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=recipe["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["max_lr"], total_steps=steps * recipe["epochs"])
    with Progress() as progress:
        task = progress.add_task("", total=steps * recipe["epochs"])
        for epoch in range(recipe["epochs"]):
            random = generator(Stream.DATA_ORDER, seed, epoch)
            order = torch.randperm(len(images), generator=random)
            correct = 0
            for batch in order[: steps * recipe["batch_size"]].view(steps, -1):
                x = distorted(to_model_range(images[batch]), recipe, random)
                with torch.autocast("cpu", torch.bfloat16):
                    logits = network(x).logits
                loss = cross_entropy(logits.float(), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                correct += int((logits.argmax(1) == labels[batch]).sum())
                progress.advance(task)
            progress.console.print(
                f"epoch {epoch + 1}: training accuracy {correct / (steps * recipe['batch_size']):.4f}"
            )
    return network.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def num_errors(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    batches = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((network(to_model_range(x)).logits.argmax(1) != y).sum()) for x, y in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds MNIST/raw or FashionMNIST/raw")
    parser.add_argument("--of", choices=SETS, default="digits", help="the data set")
    parser.add_argument("--output", type=Path, help="*.safetensors; the card goes beside it; by default in the package")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    dataset, recipe, weights_file = SETS[arguments.of]
    output = arguments.output or weights_file
    data = dataset(arguments.data)
    data.prepare_data()
    data.setup()
    parts = [data.split(name) for name in ("train", "validation")]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    network = train(images, labels, recipe, arguments.seed)
    test = data.split("test")
    errors = num_errors(network, *test)

    weights = safetensors.torch.save(network.state_dict())
    card = {
        "what": "DigitClassifier, the network behind ddpm's measures of sample quality",
        "made_by": "scripts/train_digit_classifier.py",
        "seed": arguments.seed,
        "recipe": recipe,
        "trained_on": f"{len(images)} training images of {dataset.__name__}",
        "test_images": len(test.images),
        "test_errors": errors,
        "test_accuracy": round(1 - errors / len(test.images), 6),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    replace_file(output, weights)
    replace_file(output.with_suffix(".json"), json.dumps(card, indent=2).encode() + b"\n")
    print(f"{output}: {len(weights):,} bytes, {errors} errors in {len(test.images):,} test images")


if __name__ == "__main__":
    main()
