"""The `known=` argument of completion: which pixels of an image are known, as a mask (H, W) that is True there.

top:0.5      the upper half is known
left:0.25    the left quarter is known
box:y,x,h,w  a box is unknown, everything else is known
random:0.3   every pixel is known with probability 0.3
mask.png     white pixels are known; or pixels of value 1 if the values are 0 and 1; or opaque pixels
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genlab.core import ImageSpec, RequestError, nearest
from genlab.data.reader import EXTENSIONS
from genlab.request.pictures import read_picture

KINDS = ("top", "left", "box", "random")


def known_mask(text: str, spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """The mask (H, W) bool that `text` describes. Raises RequestError for a text that describes none."""
    height, width = spec.height, spec.width
    if Path(text).suffix.lower() in EXTENSIONS:
        return _from_picture(Path(text), spec)
    kind, colon, argument = text.partition(":")
    if kind not in KINDS or not colon:
        raise RequestError(
            f"known={text} is not understood: give top:0.5, left:0.5, box:y,x,h,w, random:0.3 or a "
            "mask.png; " + nearest(kind, KINDS)
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
        inside = y >= 0 and x >= 0 and h > 0 and w > 0 and y + h <= spec.height and x + w <= spec.width
    except ValueError:
        inside = False
    if not inside:
        raise RequestError(
            f"known={text}: a box is y,x,h,w in pixels inside {spec.height}x{spec.width}, for example box:8,8,12,12"
        )
    return numbers


def _from_picture(path: Path, spec: ImageSpec) -> Tensor:
    """True where the picture is opaque and bright, or of value 1 if its values are 0 and 1.

    In a picture of a single colour with transparent pixels, the opaque pixels are known.
    """
    colours, opaque = read_picture(path, key="known")
    if tuple(opaque.shape) != (spec.height, spec.width):
        raise RequestError(
            f"known={path} is {opaque.shape[0]}x{opaque.shape[1]} (height x width), "
            f"the model's images are {spec.height}x{spec.width}"
        )
    weights = torch.tensor([299, 587, 114]) if len(colours) == 3 else torch.tensor([1000])
    grey = (colours.permute(1, 2, 0) * weights).sum(-1) // 1000
    one_colour = bool((colours[:, opaque] == colours[:, opaque][:, :1]).all())
    if not opaque.all() and one_colour:
        return opaque
    return (grey >= (1 if grey[opaque].max() == 1 else 128)) & opaque
