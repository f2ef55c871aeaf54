"""Data sets as LightningDataModules: images in memory as uint8, batches of float32 in [-1, 1].

To add a data set, write a subclass of `ImageData` with a `load` method.
"""

from ddpm.data.augmentation import Augmentation, Flip, Shift
from ddpm.data.cifar10 import CIFAR10
from ddpm.data.image_folder import ImageFolder
from ddpm.data.images import ImageData, Split, to_model_range, to_uint8
from ddpm.data.mnist import MNIST, FashionMNIST, MNISTMini

__all__ = [
    "CIFAR10",
    "MNIST",
    "Augmentation",
    "FashionMNIST",
    "Flip",
    "ImageData",
    "ImageFolder",
    "MNISTMini",
    "Shift",
    "Split",
    "to_model_range",
    "to_uint8",
]
