"""The MNIST family: 28 x 28 grey images in 10 classes, read from the IDX files in which they were published.

- MNIST (LeCun, Bottou, Bengio, Haffner 1998): 60,000 + 10,000 handwritten digits.
- Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747): as many articles of clothing.
- Binarised MNIST (Larochelle & Murray 2011, NADE): one Bernoulli draw of MNIST with its own splits. Papers that report
  about 79 nats use it.
- MNIST mini: the first 10,000 + 2,000 images of MNIST. It is part of this package.

Checksums and mirrors are torchvision's. We read the .gz files in place; torchvision first unpacks them, which needs a
folder that can be written to.

Shapes: images (N, 1, 28, 28), labels (N,).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets as official

from genlab.core import RequestError
from genlab.data.files import File, find, locate, md5_of, unzipped
from genlab.data.source import Split, Splits, unlabelled

CONFIGURABLE = {"source": ("BinarizedMNIST", "FashionMNIST", "MNIST", "MNISTMini")}

DIGITS = tuple("0123456789")
LAROCHELLE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
CONTENT_MD5S = {  # of the unpacked content of MNIST's four files
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}
IDX_FILES = tuple(CONTENT_MD5S)


class MNIST:
    """60,000 + 10,000 handwritten digits.

    `published`: torchvision's class, which has the names, checksums and mirrors. `content_md5s`: file name -> md5 of
    its unpacked content. `tables`: the names of the two tables in which Kaggle has the data set.
    """

    name = "mnist"
    published: type[official.MNIST] = official.MNIST
    class_names = DIGITS
    content_md5s: Mapping[str, str] = CONTENT_MD5S
    tables: tuple[str, ...] = ("mnist_train.csv", "mnist_test.csv")

    def load(self, root: Path | None) -> Splits:
        """Read `<root>/MNIST/raw/*-ubyte.gz`, or the unpacked files under torchvision's or Kaggle's names for them, or
        else Kaggle's two tables.

        Raises RequestError if the files are missing and cannot be downloaded, or are damaged.
        """
        md5s = dict(self.published.resources)
        files = [
            File(
                name,
                folder=f"{self.published.__name__}/raw",
                md5=md5s[name],
                urls=tuple(mirror + name for mirror in self.published.mirrors),
                unpacked=(name.removesuffix(".gz"), name.removesuffix(".gz").replace("-idx", ".idx")),
                by_content=name in self.content_md5s,
            )
            for name in IDX_FILES
        ]
        tables = [path for name in self.tables if (path := find(File(name), root))]
        if tables and len(tables) == len(self.tables) and None in [find(file, root) for file in files]:
            return self.splits(
                [array for path in tables for array in read_table(path)], [*tables[:1] * 2, *tables[1:] * 2]
            )
        paths = locate(files, root)
        return self.splits([read_idx(path) for path in paths], paths)

    def splits(self, arrays: list[Tensor], paths: list[Path]) -> Splits:
        """The splits made of four arrays in the order of IDX_FILES, which were read from `paths`.

        Raises RequestError if an array is known to belong to another data set.
        """
        for name, array, path in zip(IDX_FILES, arrays, paths, strict=True):
            md5 = md5_of(as_idx(array))
            expected = md5 == self.content_md5s[name] if self.content_md5s else md5 not in CONTENT_MD5S.values()
            if not expected:
                raise RequestError(f"{path} is not of {self.name}: the md5 of its values is {md5}; replace it")
        return splits_of(arrays, self.class_names)


class FashionMNIST(MNIST):
    """60,000 + 10,000 articles of clothing, in MNIST's format."""

    name = "fashion_mnist"
    published = official.FashionMNIST
    class_names = tuple(official.FashionMNIST.classes)
    content_md5s: Mapping[str, str] = {}  # unknown, but files of MNIST, which have the same names, are recognised
    tables = ()  # Kaggle's tables have the images in another order


class MNISTMini:
    """The first 10,000 + 2,000 images of MNIST. They are part of genlab, so nothing has to be downloaded."""

    name = "mnist_mini"
    folder = Path(__file__).parent / "mnist_mini"

    def load(self, root: Path | None) -> Splits:
        """Read the files of the package. `root` is not used."""
        return splits_of([read_idx(self.folder / name) for name in IDX_FILES], DIGITS)


class BinarizedMNIST:
    """Larochelle's binarised MNIST: 50,000 + 10,000 + 10,000 images of 0 and 1, without labels."""

    name = "mnist"

    def load(self, root: Path | None) -> Splits:
        """Read `<root>/MNIST_binary/binarized_mnist_{train,valid,test}.amat`: a line of 784 digits per image.

        They are never downloaded, because the publisher's server is not reliable. Raises RequestError if they are
        missing or damaged.
        """
        names = [f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")]
        files = [File(name, folder="MNIST_binary", page=LAROCHELLE + name) for name in names]
        train, valid, test = (unlabelled(read_amat(path)) for path in locate(files, root))
        return Splits(train, test, valid=valid, levels=2)


def splits_of(arrays: list[Tensor], class_names: tuple[str, ...]) -> Splits:
    """The splits made of the content of the four IDX files, in the order of IDX_FILES."""
    train_images, train_labels, test_images, test_labels = arrays
    return Splits(
        Split(train_images.unsqueeze(1), train_labels.long()),
        Split(test_images.unsqueeze(1), test_labels.long()),
        class_names,
    )


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes, packed or not: uint8 of the shape that the file gives.

    The format: two zeros, the type (8 is uint8), the number of sizes, the sizes as big-endian int32, the values. Raises
    RequestError if the file is damaged.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = unzipped(content)
    start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" else len(content) + 1
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if start <= len(content) else ()
    if not shape or len(content) - start != math.prod(shape):
        raise RequestError(f"{path} is not a whole IDX file of bytes: delete or replace it")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def as_idx(values: Tensor) -> bytes:
    """The content of an IDX file with these uint8 values."""
    return struct.pack(f">2xBB{values.ndim}I", 8, values.ndim, *values.shape) + values.numpy().tobytes()


def read_table(path: Path) -> tuple[Tensor, Tensor]:
    """Read Kaggle's table, a header and then lines of a label and 784 values: images (N, 28, 28), labels (N,)."""
    try:
        values = np.loadtxt(path, np.uint8, delimiter=",", skiprows=1, ndmin=2)
        table = torch.from_numpy(values.reshape(-1, 785))
    except ValueError as error:
        raise RequestError(f"{path} is not a table of a label and 784 values a line: delete or replace it") from error
    return table[:, 1:].reshape(-1, 28, 28), table[:, 0].clone()


def read_amat(path: Path) -> Tensor:
    """Read a text of zeros and ones, 784 for each image: uint8 (N, 1, 28, 28)."""
    bits = np.frombuffer(path.read_bytes().translate(None, b" \t\r\n"), np.uint8) - ord("0")
    if not bits.size or bits.size % 784 or bits.max() > 1:
        raise RequestError(f"{path} is not a text of 784 times 0 or 1 an image: delete or replace it")
    return torch.from_numpy(bits.reshape(-1, 1, 28, 28))
