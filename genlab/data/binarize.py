"""Binarisation: grey images to images of 0 and 1. Another random variable, hence another data set with its own name.

- static: every pixel drawn once, 1 with probability x / 255, the same draw for ever (as Salakhutdinov & Murray 2008).
- dynamic: training images are drawn anew whenever they are shown (Burda et al. 2016); validation and test are the
  static draw, so that a number can be reproduced.
- threshold: x >= 128.
- larochelle: the published draw, in files of its own (`mnist.BinarizedMNIST`).

Ours draws without floats: with u uniform on 0..254, P(u < x) = x / 255 exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genlab.system.device import moved

KINDS = ("none", "static", "dynamic", "threshold", "larochelle")
SEEDS = {"train": 1, "test": 2, "valid": 3}  # of the static draw: part of the data, not of a run


def still(kind: str, images: Tensor, split: str) -> Tensor:
    """The images (N, C, H, W) of an official split that numbers are computed on, the same at every call."""
    if kind in ("static", "dynamic"):
        return static_draw(images, SEEDS[split])
    return threshold(images) if kind == "threshold" else images


def static_draw(images: Tensor, seed: int) -> Tensor:
    """Uint8 in 0..255 -> uint8 in 0..1, any shape; RandomState, because NumPy promises never to change its numbers."""
    u = np.random.RandomState(seed).randint(0, 255, size=tuple(images.shape), dtype=np.uint8)
    return (torch.from_numpy(u) < images).to(torch.uint8)


def fresh_draw(images: Tensor, generator: torch.Generator) -> Tensor:
    """As `static_draw`, from a generator. Drawn on the CPU: the same on every device."""
    u = torch.randint(0, 255, images.shape, dtype=torch.uint8, generator=generator)
    return (moved(u, images.device) < images).to(torch.uint8)


def threshold(images: Tensor) -> Tensor:
    """1 where a pixel is in the brighter half."""
    return (images >= 128).to(torch.uint8)
