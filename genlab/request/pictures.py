"""The user's picture files as integer images for a model. They are checked and quantised, but never resized.

C channels, H x W pixels, K levels of the model's images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genlab.core import ImageSpec, RequestError
from genlab.data.reader import TooLarge, Unreadable, read

OPAQUE = 128  # from this alpha on, a pixel counts as known; some programs write 254 for an opaque pixel


def read_picture(path: Path, *, key: str = "image") -> tuple[Tensor, Tensor]:
    """(colours (1 or 3, H, W) uint8, opaque (H, W) bool) of the picture file that the config key `key` names.

    Raises RequestError for a file that is no picture, damaged or too large.
    """
    argument = f"{key}={path}"
    try:
        colours, alpha, notes = read(_at_home(path))
    except TooLarge as error:
        raise RequestError(f"{argument} is too large: {error}; crop or shrink it first") from error
    except Unreadable as error:
        raise RequestError(f"{argument} is not a readable picture: {error}") from error
    for note in notes:
        print(f"{argument} has {note}", file=sys.stderr)
    pixels = torch.from_numpy(np.array(colours))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    opaque = torch.ones(pixels.shape[1:], dtype=torch.bool) if alpha is None else torch.from_numpy(alpha >= OPAQUE)
    return pixels, opaque


def _at_home(path: Path) -> Path:
    """The path with ~ replaced by the home folder."""
    try:
        return path.expanduser()
    except RuntimeError as error:  # there is no user of that name
        raise Unreadable("there is no such home folder") from error


def partial_image(path: Path, spec: ImageSpec) -> tuple[Tensor, Tensor]:
    """A picture file -> (image (C, H, W) integers in 0..K-1, known (H, W) bool).

    Transparent pixels are unknown. A picture smaller than the model's images is taken as their top left part.
    Raises RequestError for a picture that is larger, or in colour if the model's images are grey.
    """
    argument, (colours, opaque) = f"image={path}", read_picture(path)
    height, width = opaque.shape
    if height > spec.height or width > spec.width:
        raise RequestError(
            f"{argument} is {height}x{width} (height x width), larger than the model's {spec.height}x{spec.width}: "
            "crop or shrink it first"
        )
    colours = _in_channels(colours, opaque, spec, argument)
    image = torch.zeros(spec.shape, dtype=torch.long)
    known = torch.zeros(spec.height, spec.width, dtype=torch.bool)
    image[:, :height, :width] = quantise(colours, spec)
    known[:height, :width] = opaque
    return image, known


def whole_image(path: Path, spec: ImageSpec) -> Tensor:
    """A picture file of the model's size without transparent pixels -> integers (C, H, W), 0..K-1."""
    image, known = partial_image(path, spec)
    if not known.all():
        raise RequestError(
            f"image={path} leaves pixels open (transparent, or smaller than the model's "
            f"{spec.height}x{spec.width}): give a whole image"
        )
    return image


def context_image(path: Path, spec: ImageSpec, whole: ImageSpec) -> tuple[Tensor, bool]:
    """A picture file for `context=` -> (integers, True if it is a whole image from which the context is to be made).

    The picture is either a context, as `spec` describes it, or a whole image, as `whole` does. They differ in size.
    If both have the same size and contexts are grey, a picture in colour is a whole image.
    """
    argument, (colours, opaque) = f"context={path}", read_picture(path, key="context")
    size = tuple(opaque.shape)
    sizes = {"context": (spec.height, spec.width), "whole": (whole.height, whole.width)}
    if size not in sizes.values():
        raise RequestError(
            f"{argument} is {size[0]}x{size[1]} (height x width): give the context itself, "
            f"{spec.height}x{spec.width}, or a whole image to make it from, {whole.height}x{whole.width}"
        )
    if not opaque.all():
        raise RequestError(f"{argument} has transparent pixels, and a context is known everywhere")
    grey = bool((colours == colours[:1]).all())
    is_whole = size != sizes["context"] or (spec.channels == 1 < whole.channels and not grey)
    picture_spec = whole if is_whole else spec
    return quantise(_in_channels(colours, opaque, picture_spec, argument), picture_spec), is_whole


def _in_channels(colours: Tensor, opaque: Tensor, spec: ImageSpec, argument: str) -> Tensor:
    """8-bit channels (1 or 3, h, w) -> the model's (C, h, w). `argument`: as the user gave the picture."""
    if spec.channels == 1:
        if not (colours == colours[:1]).all(0)[opaque].all():
            raise RequestError(f"{argument} has colours, the model's images are grey: convert it to grey first")
        return colours[:1]
    if spec.channels != 3:
        raise RequestError(f"{argument}: the model's images have {spec.channels} channels, a picture has 1 or 3")
    return colours.expand(3, -1, -1)


def quantise(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """8-bit values -> integers in 0..K-1. Every level stands for an equal share of 0..255."""
    return pixels.long() * spec.levels // 256
