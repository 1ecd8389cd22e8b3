"""What a data set is before training knows of it: integer images, integer labels, official splits.

A source reads files and nothing else. Pixels and labels are the integers of the file, uint8 and int64, and never pass
through a float: recovering integers from scaled floats is how 63 of 256 grey levels were once labelled wrongly.

N images, C channels, H x W pixels.
"""

from __future__ import annotations

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
    """The official splits of a data set. `valid` only where the publisher made one; without labels, no class names."""

    train: Split
    test: Split
    class_names: tuple[str, ...] = ()
    valid: Split | None = None


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


def unlabelled(images: Tensor) -> Split:
    """Images (N, C, H, W) without classes: every label is 0."""
    return Split(images, torch.zeros(len(images), dtype=torch.int64))
