"""Data sets: integer images, fixed splits, and training batches that are a function of their number."""

from genlab.data.batches import Batch
from genlab.data.cifar10 import CIFAR10
from genlab.data.context import Grey, Half, HalfMean, Label, LowRes
from genlab.data.folder import Folder, folder_data
from genlab.data.mnist import MNIST, BinarizedMNIST, FashionMNIST, MNISTMini
from genlab.data.mnist_colour import MNISTColour
from genlab.data.module import ImageData
from genlab.data.shapes import Shapes
from genlab.data.source import Source, Split, Splits
from genlab.data.svhn import SVHN
from genlab.data.toy import Toy, toy_data

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
    "MNISTColour",
    "MNISTMini",
    "Shapes",
    "Source",
    "Split",
    "Splits",
    "Toy",
    "folder_data",
    "toy_data",
]
