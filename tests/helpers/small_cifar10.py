"""Writes a small data set in the format of CIFAR-10."""

import pickle

import numpy as np

from ddpm.data.cifar10 import FOLDER, TEST, TRAIN


def write_small(root, count=8, key=str):
    """Files in CIFAR-10's format with `count` images each, and all their pixels and labels by part."""
    draws = np.random.default_rng(0)
    folder = root / FOLDER
    folder.mkdir(parents=True)
    written = {}
    for name in TRAIN + TEST:
        pixels = draws.integers(256, size=(count, 3072), dtype=np.uint8)
        labels = draws.integers(10, size=count).tolist()
        content = {"batch_label": name, "labels": labels, "data": pixels, "filenames": ["a.png"] * count}
        (folder / name).write_bytes(pickle.dumps({key(name): value for name, value in content.items()}, protocol=2))
        written[name] = pixels, labels
    return written
