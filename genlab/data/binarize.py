"""Binarisation: from grey images x in 0..255 to images of 0 and 1.

A binarised image is another random variable, so a binarised data set has its own name.

- static: every pixel is drawn once, 1 with probability x / 255 (Salakhutdinov & Murray 2008). The draw never changes.
- dynamic: training images are drawn again whenever they are used (Burda et al. 2016, arXiv:1509.00519). Validation and
  test images are the static draw, so that their numbers can be reproduced.
- threshold: 1 where x >= 128.
- larochelle: a published draw, which has its own files (`mnist.BinarizedMNIST`).

We draw with integers only: for u uniform on 0..254, P(u < x) is exactly x / 255.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genlab.system.device import moved

KINDS = ("none", "static", "dynamic", "threshold", "larochelle")
SEEDS = {"train": 1, "test": 2, "valid": 3}  # of the static draw; they do not depend on the seed of a run


def static_binarization(kind: str, images: Tensor, split: str) -> Tensor:
    """Binarise the images (N, C, H, W) of an official split, with the same result at every call.

    For the kind "dynamic" this is the static draw; for "none" and "larochelle" the images are returned unchanged.
    """
    if kind in ("static", "dynamic"):
        return static_draw(images, SEEDS[split])
    return threshold(images) if kind == "threshold" else images


def static_draw(images: Tensor, seed: int) -> Tensor:
    """Uint8 in 0..255 -> uint8 in 0..1, any shape. Equal seeds give equal draws."""
    # RandomState, because NumPy promises that its numbers never change.
    u = np.random.RandomState(seed).randint(0, 255, size=tuple(images.shape), dtype=np.uint8)
    return (torch.from_numpy(u) < images).to(torch.uint8)


def dynamic_draw(images: Tensor, generator: torch.Generator) -> Tensor:
    """Like `static_draw`, from a generator on the CPU, so that the result is the same on every device."""
    u = torch.randint(0, 255, images.shape, dtype=torch.uint8, generator=generator)
    return (moved(u, images.device) < images).to(torch.uint8)


def threshold(images: Tensor) -> Tensor:
    """Uint8 in 0..255 -> 1 where a pixel is in the brighter half, else 0."""
    return (images >= 128).to(torch.uint8)
