"""Data sets: integer images, fixed splits, and a training sequence that is a function of a number."""

from genlab.data.batches import Batch
from genlab.data.cifar10 import CIFAR10
from genlab.data.context import Grey, Half, HalfMean, Label, LowRes
from genlab.data.folder import Folder, folder_data
from genlab.data.mnist import MNIST, BinarizedMNIST, FashionMNIST, MNISTMini
from genlab.data.module import ImageData
from genlab.data.source import Source, Split, Splits
from genlab.data.svhn import SVHN

__all__ = [
    "CIFAR10",
    "MNIST",
    "SVHN",
    "Batch",
    "BinarizedMNIST",
    "FashionMNIST",
    "Folder",
    "Grey",
    "Half",
    "HalfMean",
    "ImageData",
    "Label",
    "LowRes",
    "MNISTMini",
    "Source",
    "Split",
    "Splits",
    "folder_data",
]

# What a config may build, by the key that it builds it under; `build.py` builds nothing else.
CONFIGURABLE = {
    "data": ("ImageData", "folder_data"),
    "source": ("BinarizedMNIST", "CIFAR10", "FashionMNIST", "Folder", "MNIST", "MNISTMini", "SVHN"),
    "context": ("Grey", "Half", "HalfMean", "Label", "LowRes"),
}
