"""MNIST in colours of 2 bits a channel, for models of dependent channels (homework of the Berkeley course CS294-158).

Every digit and its ground have two different colours, drawn once with a fixed seed. A channel goes from the level of
the ground to the level of the digit as the grey value x goes from 0 to 255: ground + (digit - ground) x / 255, rounded.
The course used a file of its own making, so losses on the two are of the same order, but cannot be compared digit by
digit.

Shapes: images (N, 3, 28, 28) with 4 levels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from genlab.data.colours import LEVELS, two_colours
from genlab.data.mnist import MNIST
from genlab.data.source import Split, Splits

CONFIGURABLE = {"source": ("MNISTColour",)}

SEEDS = {"train": 1, "test": 2}


class MNISTColour:
    """MNIST, coloured."""

    name = "mnist_colour"

    def load(self, root: Path | None) -> Splits:
        """Read MNIST (see `MNIST.load`) and colour it."""
        grey = MNIST().load(root)
        train, test = coloured(grey.train, SEEDS["train"]), coloured(grey.test, SEEDS["test"])
        return replace(grey, train=train, test=test, levels=LEVELS)


def coloured(split: Split, seed: int) -> Split:
    """8-bit grey images (N, 1, H, W) -> images of three channels with 4 levels. Equal seeds give equal colours."""
    # RandomState, because NumPy promises that its numbers never change.
    colours = two_colours(np.random.RandomState(seed), len(split.labels))
    ground, digit = (torch.from_numpy(each).short() for each in colours)
    numerator = 255 * ground + (digit - ground) * split.images.short()  # at most 765
    return Split(((2 * numerator + 255) // 510).to(torch.uint8), split.labels)
