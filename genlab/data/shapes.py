"""Shapes: small generated images, of which the best possible likelihood is known.

An image of 20 x 20 pixels shows one rectangle, ellipse or triangle. Its width and height are between 4 and 12 pixels,
and it lies anywhere inside the image. Kind, width, height and place are drawn uniformly, in this order. No two draws
give the same image, so the entropy of the images is that of the draws, `Shapes.entropy`: no model can do better on
average. With colours, the shape and the ground have different ones of the 64 colours of 2 bits a channel.

The homework of the Berkeley course CS294-158 uses such images, from a file. Ours are generated, so losses on the two
are of the same order, but cannot be compared digit by digit. Everything is computed with integers, so the images are
the same on every machine.

Shapes: images (N, 1, 20, 20) with 2 levels, or (N, 3, 20, 20) with 4; labels (N,).
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import torch

from genlab.data.colours import COLOURS, LEVELS, two_colours
from genlab.data.source import Split, Splits

CONFIGURABLE = {"source": ("Shapes",)}

KINDS = ("rectangle", "ellipse", "triangle")
SIDE, SMALLEST, LARGEST = 20, 4, 12  # pixels
COUNTS = {"train": 20_000, "valid": 2_000, "test": 5_000}  # images


class Shapes:
    """Generated images of one shape each. `colour`: colours of 2 bits a channel instead of white on black."""

    class_names = KINDS

    def __init__(self, colour: bool = False) -> None:
        self.colour = colour
        self.name = "shapes_colour" if colour else "shapes"

    def load(self, root: Path | None) -> Splits:
        """Draw the images. `root` is not used."""
        train, valid, test = (self._draw(count, seed) for seed, count in enumerate(COUNTS.values()))
        return Splits(train, test, self.class_names, valid, levels=LEVELS if self.colour else 2)

    @property
    def entropy(self) -> float:
        """The entropy of an image in nats."""
        sizes = range(SMALLEST, LARGEST + 1)
        places = sum(math.log((SIDE - h + 1) * (SIDE - w + 1)) for h, w in product(sizes, sizes)) / len(sizes) ** 2
        colours = math.log(COLOURS * (COLOURS - 1)) if self.colour else 0.0
        return math.log(len(KINDS)) + 2 * math.log(len(sizes)) + places + colours

    def _draw(self, count: int, seed: int) -> Split:
        """`count` images and labels. RandomState, because NumPy promises that its numbers never change."""
        random = np.random.RandomState(seed)
        kinds = random.randint(len(KINDS), size=count)
        heights, widths = random.randint(SMALLEST, LARGEST + 1, size=(2, count))
        tops, lefts = (random.randint(SIDE - sizes + 1) for sizes in (heights, widths))
        masks = np.zeros((count, 1, SIDE, SIDE), np.uint8)
        for mask, kind, h, w, top, left in zip(masks, kinds, heights, widths, tops, lefts, strict=True):
            mask[0, top : top + h, left : left + w] = stencil(KINDS[kind], h, w)
        images = masks
        if self.colour:
            ground, shape = two_colours(random, count)
            images = np.where(masks, shape, ground)
        return Split(torch.from_numpy(images), torch.from_numpy(kinds.astype(np.int64)))


def stencil(kind: str, height: int, width: int) -> np.ndarray:
    """A shape that fills a box of height x width pixels: 0 or 1."""
    # Twice the distances of the pixels from the middle of the box, so that all numbers are whole.
    y, x = 2 * np.arange(height)[:, None] - (height - 1), 2 * np.arange(width)[None] - (width - 1)
    if kind == "rectangle":
        return np.ones((height, width), np.uint8)
    if kind == "ellipse":
        return ((y * width) ** 2 + (x * height) ** 2 <= (height * width) ** 2).astype(np.uint8)
    row = np.arange(height)[:, None] + 1
    return (abs(x) * height <= np.maximum(row * width, height)).astype(np.uint8)
