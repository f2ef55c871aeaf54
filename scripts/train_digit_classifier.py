#!/usr/bin/env python
"""Trains the digit classifier whose features measure sample quality, and writes its weights and their card.

    python scripts/train_digit_classifier.py --data DIR

DIR holds MNIST/raw (downloaded if absent). Takes about ten minutes on one CPU core. Trains on all 60,000 training
images and keeps the weights of the last step. The test images are used only once, for the accuracy on the card.
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

from ddpm.data import MNIST, to_model_range
from ddpm.metrics.digit_classifier import WEIGHTS, DigitClassifier
from ddpm.runs.files import replace_file
from ddpm.seeding import Stream, generator, seed_at

RECIPE: dict[str, Any] = {
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


def distorted(images: Tensor, random: torch.Generator) -> Tensor:
    """Returns digits [B, 1, H, W] in [-1, 1] with a small random rotation, shift, scale and shear each."""

    def uniform(largest: float, *shape: int) -> Tensor:
        return largest * (2 * torch.rand(len(images), *shape, generator=random) - 1)

    angle = torch.deg2rad(uniform(RECIPE["rotation_degrees"]))
    scale, shear = 1 + uniform(RECIPE["scale"]), uniform(RECIPE["shear"])
    shift = uniform(RECIPE["shift_pixels"] * 2 / images.shape[-1], 2)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, shear - sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images + 1, grid, align_corners=False) - 1  # outside the image is black, -1


def train(images: Tensor, labels: Tensor, seed: int) -> DigitClassifier:
    torch.manual_seed(seed_at(Stream.INITIAL_WEIGHTS, seed))
    # Convolutions of channels_last tensors are a third faster on a CPU.
    network = DigitClassifier().to(memory_format=torch.channels_last)
    steps = len(images) // RECIPE["batch_size"]
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=RECIPE["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["max_lr"], total_steps=steps * RECIPE["epochs"])
    with Progress() as progress:
        task = progress.add_task("", total=steps * RECIPE["epochs"])
        for epoch in range(RECIPE["epochs"]):
            random = generator(Stream.DATA_ORDER, seed, epoch)
            order = torch.randperm(len(images), generator=random)
            correct = 0
            for batch in order[: steps * RECIPE["batch_size"]].view(steps, -1):
                x = distorted(to_model_range(images[batch]), random)
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
                f"epoch {epoch + 1}: training accuracy {correct / (steps * RECIPE['batch_size']):.4f}"
            )
    return network.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def num_errors(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    batches = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((network(to_model_range(x)).logits.argmax(1) != y).sum()) for x, y in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds MNIST/raw")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="*.safetensors; the card goes beside it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    mnist = MNIST(arguments.data)
    mnist.prepare_data()
    mnist.setup()
    parts = [mnist.split(name) for name in ("train", "validation")]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    network = train(images, labels, arguments.seed)
    test = mnist.split("test")
    errors = num_errors(network, *test)

    weights = safetensors.torch.save(network.state_dict())
    card = {
        "what": "DigitClassifier, the network behind ddpm's measures of sample quality",
        "made_by": "scripts/train_digit_classifier.py",
        "seed": arguments.seed,
        "recipe": RECIPE,
        "trained_on": f"{len(images)} training images of MNIST",
        "test_images": len(test.images),
        "test_errors": errors,
        "test_accuracy": round(1 - errors / len(test.images), 6),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    replace_file(arguments.output, weights)
    replace_file(arguments.output.with_suffix(".json"), json.dumps(card, indent=2).encode() + b"\n")
    print(f"{arguments.output}: {len(weights):,} bytes, {errors} errors in {len(test.images):,} test images")


if __name__ == "__main__":
    main()
