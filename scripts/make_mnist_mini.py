"""Makes `ddpm/data/mnist_mini` from MNIST: the first images of each digit, in their original order."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ddpm.data.idx import read_idx, write_idx

IMAGES_PER_DIGIT = {"train": 1000, "t10k": 200}


def first_of_each_digit(labels: Tensor, count: int) -> Tensor:
    """Return the indices of the first `count` images of each digit, ascending."""
    of_digit = [(labels == digit).nonzero()[:count, 0] for digit in range(10)]
    return torch.cat(of_digit).sort().values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the folder that holds MNIST/raw")
    parser.add_argument("output", type=Path, help="folder for the four *.gz files")
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    for part, count in IMAGES_PER_DIGIT.items():
        files = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
        images, labels = (read_idx(arguments.source / "MNIST" / "raw" / name) for name in files)
        chosen = first_of_each_digit(labels, count)
        for name, array in zip(files, (images, labels), strict=True):
            path = arguments.output / f"{name}.gz"
            write_idx(path, array[chosen])
            print(f"{path}: {len(chosen):,} of {len(labels):,}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
