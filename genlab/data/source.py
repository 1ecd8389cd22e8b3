"""Sources: the unprocessed content of a data set, integer images and labels in their official splits.

A source only reads files. Pixels and labels are the integers of the files, as uint8 and int64. They are never converted
to floats, because converting back is error-prone: other code that recovered integers from scaled floats got 63 of the
256 grey levels wrong.

N images, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SPLIT_SEED = 1  # of the division into training and validation images; it does not depend on the seed of a run


class Split(NamedTuple):
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor | slice) -> Split:
        """The images and labels at `index`, in that order."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Splits:
    """The official splits of a data set.

    `class_names`: empty if there are no labels. `valid`: None unless the publisher made a validation split. `numbers`:
    a number in [0, 1) for every training image (N,), or None; with them, the images with the lowest numbers become the
    validation images, and adding or removing other images hardly changes this. `remarks`: what the user
    should know about how the files were read. `levels` L: the values are 0..L - 1.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...] = ()
    valid: Split | None = None
    numbers: Tensor | None = None
    remarks: tuple[str, ...] = ()
    levels: int = 256


class Source(Protocol):
    """A data set: its name and how to read it."""

    name: str

    def load(self, root: Path | None) -> Splits:
        """Read the data set from `root` (None: the usual places, see `files.data_root`)."""
        ...


def cut(split: Split, count: int) -> tuple[Split, Split]:
    """Divide N images into N - `count` for training and `count` for validation, both in the order of the file.

    The division depends only on N and `count`, not on the seed of a run, so that all runs are compared on the same
    images. RandomState, because NumPy promises that its numbers never change.
    """
    shuffled = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(split.labels)))
    return split.take(shuffled[count:].sort().values), split.take(shuffled[:count].sort().values)


def numbers_of(purpose: str, names: Iterable[str]) -> Tensor:
    """A pseudo-random number in [0, 1) for every name, float64 (N,). It depends only on the name and the purpose.

    Unicode has two ways to write an accented letter. Both give the same number.
    """
    keys = (f"{purpose}/{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape") for name in names)
    digests = (hashlib.sha256(key).digest() for key in keys)
    return torch.tensor([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests], dtype=torch.float64)


def lowest(numbers: Tensor, share: float, least: int, most: int) -> Tensor:
    """Choose the numbers (N,) below `share`, but at least the `least` lowest and at most `most`: bool (N,)."""
    count = max(0, min(most, max(least, int((numbers < share).sum()))))
    chosen = torch.zeros(len(numbers), dtype=torch.bool)
    chosen[numbers.argsort(stable=True)[:count]] = True
    return chosen


def unlabelled(images: Tensor) -> Split:
    """Images (N, C, H, W) without classes: every label is 0."""
    return Split(images, torch.zeros(len(images), dtype=torch.int64))
