"""What a data set is before training knows of it: integer images, integer labels, official splits.

A source reads files and nothing else. Pixels and labels are the integers of the file, uint8 and int64, and never pass
through a float: recovering integers from scaled floats is how 63 of 256 grey levels were once labelled wrongly.

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

SPLIT_SEED = 1


class Split(NamedTuple):
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor | slice) -> Split:
        """The images and labels at `index`, in that order."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Splits:
    """The official splits of a data set. `valid` only where the publisher made one; without labels, no class names.

    `numbers`: of every training image one in [0, 1), the lowest of which are to validate on, where that must not depend
    on the other images. `remarks`: what a person should know about how the files were read.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...] = ()
    valid: Split | None = None
    numbers: Tensor | None = None
    remarks: tuple[str, ...] = ()


class Source(Protocol):
    """A data set: its name and how to read it."""

    name: str

    def load(self, root: Path | None) -> Splits:
        """Read the data set from `root` (None: the usual places, see `files.data_root`)."""
        ...


def cut(split: Split, count: int) -> tuple[Split, Split]:
    """Divide N images into N - count and `count`, chosen once and for all; both keep the order of the file.

    The choice depends on N and `count` alone, never on the seed of a run: every run is judged by the same images.
    RandomState, because NumPy promises never to change its numbers.
    """
    shuffled = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(split.labels)))
    return split.take(shuffled[count:].sort().values), split.take(shuffled[:count].sort().values)


def numbers_of(purpose: str, names: Iterable[str]) -> Tensor:
    """A number in [0, 1) of every name, float64 (N,): a function of the name and the purpose, as good as drawn.

    Names are compared as people read them: the same in both ways in which Unicode writes an accent.
    """
    keys = (f"{purpose}/{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape") for name in names)
    digests = (hashlib.sha256(key).digest() for key in keys)
    return torch.tensor([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests], dtype=torch.float64)


def lowest(numbers: Tensor, share: float, least: int, most: int) -> Tensor:
    """Which numbers are below `share`, (N,) bool; the lowest `least` if fewer are, the lowest `most` if more are."""
    count = max(0, min(most, max(least, int((numbers < share).sum()))))
    chosen = torch.zeros(len(numbers), dtype=torch.bool)
    chosen[numbers.argsort(stable=True)[:count]] = True
    return chosen


def unlabelled(images: Tensor) -> Split:
    """Images (N, C, H, W) without classes: every label is 0."""
    return Split(images, torch.zeros(len(images), dtype=torch.int64))
