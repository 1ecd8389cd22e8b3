"""The MNIST family: 28 x 28 grey images, 10 classes, in the IDX files they were published in.

MNIST: LeCun, Bottou, Bengio, Haffner 1998, 60,000 + 10,000 handwritten digits. Fashion-MNIST: Xiao, Rasul, Vollgraf
2017 (arXiv:1708.07747), as many articles of clothing. Binarised MNIST: Larochelle & Murray 2011 (NADE), one Bernoulli
draw of MNIST that "79 nats" papers compare on, in splits of its own. MNIST mini: the first 10,000 + 2,000 images of
MNIST, inside this package.

Checksums and mirrors are torchvision's; ours reads the .gz files in place (torchvision unpacks them first, which needs
a folder that can be written to). Shapes: images (N, 1, 28, 28), labels (N,).
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets as official

from genlab.core import RequestError
from genlab.data.files import File, locate
from genlab.data.source import Split, Splits, unlabelled

DIGITS = tuple("0123456789")
LAROCHELLE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


class MNIST:
    """60,000 + 10,000 handwritten digits."""

    name = "mnist"
    published: type[official.MNIST] = official.MNIST
    class_names = DIGITS

    def load(self, root: Path | None) -> Splits:
        """Read `<root>/MNIST/raw/*-ubyte.gz` (or the unpacked files beside them)."""
        md5s = dict(self.published.resources)
        files = [
            File(
                name,
                folder=f"{self.published.__name__}/raw",
                md5=md5s[name],
                urls=tuple(mirror + name for mirror in self.published.mirrors),
                unpacked=name.removesuffix(".gz"),
            )
            for name in IDX_FILES
        ]
        return read_splits(locate(files, root), self.class_names)


class FashionMNIST(MNIST):
    """60,000 + 10,000 articles of clothing, in MNIST's format."""

    name = "fashion_mnist"
    published = official.FashionMNIST
    class_names = tuple(official.FashionMNIST.classes)


class MNISTMini:
    """The first 10,000 + 2,000 images of MNIST, shipped with genlab: the data set that needs nothing."""

    name = "mnist_mini"
    folder = Path(__file__).parent / "mnist_mini"

    def load(self, root: Path | None) -> Splits:
        """Read the package's own files; `root` does not matter."""
        return read_splits([self.folder / name for name in IDX_FILES], DIGITS)


class BinarizedMNIST:
    """Larochelle's binarised MNIST: 50,000 + 10,000 + 10,000 images of 0 and 1, without labels."""

    name = "mnist"

    def load(self, root: Path | None) -> Splits:
        """Read `<root>/MNIST_binary/binarized_mnist_{train,valid,test}.amat`: a line of 784 digits an image.

        Their publisher's server is not dependable, so they are never downloaded.
        """
        names = [f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")]
        files = [File(name, folder="MNIST_binary", page=LAROCHELLE + name) for name in names]
        train, valid, test = (unlabelled(read_amat(path)) for path in locate(files, root))
        return Splits(train, test, valid=valid)


def read_splits(paths: list[Path], class_names: tuple[str, ...]) -> Splits:
    """The four IDX files, in the order of IDX_FILES."""
    train_images, train_labels, test_images, test_labels = map(read_idx, paths)
    return Splits(
        Split(train_images.unsqueeze(1), train_labels.long()),
        Split(test_images.unsqueeze(1), test_labels.long()),
        class_names,
    )


def read_idx(path: Path) -> Tensor:
    """An IDX file of bytes: 0, 0, type (8: uint8), number of sizes, the sizes as big-endian int32, the values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" else len(content) + 1
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if start <= len(content) else ()
    if not shape or len(content) - start != math.prod(shape):
        raise RequestError(f"{path} is not a whole IDX file of bytes: delete or replace it")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def read_amat(path: Path) -> Tensor:
    """Text of 0s and 1s, 784 an image -> (N, 1, 28, 28)."""
    bits = np.frombuffer(path.read_bytes().translate(None, b" \t\r\n"), np.uint8) - ord("0")
    if not bits.size or bits.size % 784 or bits.max() > 1:
        raise RequestError(f"{path} is not a text of 784 times 0 or 1 an image: delete or replace it")
    return torch.from_numpy(bits.reshape(-1, 1, 28, 28))
