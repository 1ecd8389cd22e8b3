"""Which pixels are known: the `known=` argument of completion, as a mask (H, W), True = given.

top:0.5   left:0.25   box:y,x,h,w (the box is unknown)   random:0.3 (that share is known)   mask.png (white = known)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genlab.core import ImageSpec, RequestError, nearest

KINDS = ("top", "left", "box", "random")


def known_mask(text: str, spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """Mask (H, W) bool of the description `text`. Raises RequestError saying what would be right."""
    height, width = spec.height, spec.width
    if text.lower().endswith((".png", ".bmp", ".gif")):
        return _from_picture(Path(text).expanduser(), spec)
    kind, colon, argument = text.partition(":")
    if kind not in KINDS or not colon:
        raise RequestError(
            f"known={text} is not understood: give top:0.5, left:0.5, box:y,x,h,w, random:0.3 or a mask.png; "
            + nearest(kind, KINDS)
        )
    known = torch.ones(height, width, dtype=torch.bool)
    if kind == "box":
        y, x, h, w = _box(text, argument, spec)
        known[y : y + h, x : x + w] = False
        return known
    share = _share(text, argument)
    if kind == "top":
        known[round(share * height) :] = False
    elif kind == "left":
        known[:, round(share * width) :] = False
    else:
        known = torch.rand(height, width, generator=generator) < share
    return known


def _share(text: str, argument: str) -> float:
    try:
        share = float(argument)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise RequestError(f"known={text}: the share must be a number from 0 to 1, got {argument!r}")
    return share


def _box(text: str, argument: str, spec: ImageSpec) -> list[int]:
    try:
        y, x, h, w = numbers = [int(part) for part in argument.split(",")]
        good = y >= 0 and x >= 0 and h > 0 and w > 0 and y + h <= spec.height and x + w <= spec.width
    except ValueError:
        good = False
    if not good:
        raise RequestError(
            f"known={text}: a box is y,x,h,w in pixels inside {spec.height}x{spec.width}, for example box:8,8,12,12"
        )
    return numbers


def _from_picture(path: Path, spec: ImageSpec) -> Tensor:
    from genlab.pictures import read_picture

    pixels = read_picture(path, "L", key="known")[0]
    if tuple(pixels.shape) != (spec.height, spec.width):
        raise RequestError(
            f"known={path} is {pixels.shape[0]}x{pixels.shape[1]} (height x width), "
            f"the model's images are {spec.height}x{spec.width}"
        )
    return pixels >= 128
