"""Pictures of integer images: grids as PNG files, written whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genlab.core import ImageSpec
from genlab.system.atomic import atomically


def to_uint8(x: Tensor, spec: ImageSpec) -> Tensor:
    """Integers in 0..K-1 -> 0..255, rounding; 8-bit images are unchanged."""
    return (
        x.to("cpu", torch.uint8) if spec.levels == 256 else (x.cpu() * 255 / (spec.levels - 1)).round().to(torch.uint8)
    )


def grid(x: Tensor, spec: ImageSpec, columns: int | None = None) -> Image.Image:
    """Images (N, C, H, W) row by row, about square unless `columns` are given, enlarged when they are small."""
    n, columns = len(x), columns or math.ceil(math.sqrt(len(x)))
    rows, gap = math.ceil(n / columns), 2
    height, width = spec.height + gap, spec.width + gap
    sheet = torch.full((spec.channels, rows * height + gap, columns * width + gap), 128, dtype=torch.uint8)
    for i, image in enumerate(to_uint8(x, spec)):
        top, left = i // columns * height + gap, i % columns * width + gap
        sheet[:, top : top + spec.height, left : left + spec.width] = image
    pixels = sheet.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if spec.channels == 1 else _to_rgb(pixels))
    scale = max(1, 64 // max(spec.height, spec.width))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_grid(path: Path, x: Tensor, spec: ImageSpec, columns: int | None = None) -> None:
    """Write `grid` as a PNG: under another name first, so that no half-written picture is ever seen."""
    whole_file(path, lambda temporary: grid(x, spec, columns).save(temporary, format="PNG"))


def whole_file(path: Path, save: Callable[[Path], object]) -> None:
    """`save(temporary name)`, then give the file its name; a folder that is not there is made."""
    with atomically(path) as temporary:
        save(temporary)


def signed(weights: Tensor) -> Tensor:
    """Weights (N, C, h, w) -> 0..255, each by its own largest magnitude: zero is 128, positive bright."""
    largest = weights.abs().flatten(1).amax(1).clamp_min(torch.finfo(weights.dtype).tiny)
    return (128 + 127 * weights / largest[:, None, None, None]).round().long().cpu()


def _to_rgb(pixels):  # type: ignore[no-untyped-def]
    """(H, W, C) with any C >= 2 -> three channels: the first three, a missing one black."""
    rgb = torch.zeros(*pixels.shape[:2], 3, dtype=torch.uint8).numpy()
    channels = min(3, pixels.shape[-1])
    rgb[..., :channels] = pixels[..., :channels]
    return rgb
