"""How many bits images take: by a model's likelihood, and by the usual lossless codecs.

Every codec is tried on each image alone and on one mosaic of all images, which lets it learn from one image for the
next. PNG is optimised by Pillow, WebP is lossless with the slowest method, JPEG XL is lossless with effort 9 (by
imagecodecs; left out where that is not installed), zlib and xz compress the bytes at their highest level.
"""

from __future__ import annotations

import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.measure.bits import in_bits

BATCH = 200
LARGEST = 16_000  # pixels along the side of a mosaic: WebP has at most 16,383


@torch.no_grad()
def information(model: Any, images: Any, labels: Tensor | None, advance: Callable[[int], Any]) -> float:
    """Bits of all images: -log2 p(x), or for a bound one draw of it."""
    total = 0.0
    torch.manual_seed(0)
    for start in range(0, len(images), BATCH):
        x = images.part(start, min(start + BATCH, len(images))).long().to(model.device)
        context = None if labels is None else labels[start : start + BATCH].to(model.device)
        total += float(in_bits(model.log_prob(x, context).double()).sum())
        advance(len(x))
    return total


def classical_lengths(images: Any) -> Iterator[tuple[str, int]]:
    """(name, bytes of all images) for every codec: each image alone, then as a mosaic."""
    spec = images.spec
    if spec.levels > 256:
        return
    each = [image.astype(np.uint8) for image in images.whole()]
    mosaic = _mosaic(np.stack(each)) if len({image.shape for image in each}) == 1 else None
    for name, code in codecs().items():
        if name in PICTURES and spec.channels not in (1, 3):
            continue
        yield f"{name}, each image", sum(len(code(image)) for image in each)
        if mosaic is not None and max(mosaic.shape[:2]) <= LARGEST:
            yield f"{name}, a mosaic", len(code(mosaic))


PICTURES = ("PNG", "WebP", "JPEG XL")


def png_bits(image: Tensor, spec: Any) -> int:
    """Bits of an image (1 or 3, H, W) as an optimised PNG. Levels are spread over 0..255, as in a picture."""
    grey = image.long() * 255 // (spec.levels - 1)
    return 8 * len(codecs()["PNG"](grey.to(torch.uint8).permute(1, 2, 0).squeeze(2).cpu().numpy()))


def codecs() -> dict[str, Callable[[np.ndarray], bytes]]:
    """Name -> a function from a picture (h, w) or (h, w, 3) uint8 to its code."""
    found: dict[str, Callable[[np.ndarray], bytes]] = {
        "PNG": lambda a: _saved(a, "PNG", optimize=True),
        "WebP": lambda a: _saved(a, "WEBP", lossless=True, quality=100, method=6, exact=True),
        "zlib": lambda a: zlib.compress(a.tobytes(), 9),
        "xz": lambda a: lzma.compress(a.tobytes(), preset=9 | lzma.PRESET_EXTREME),
    }
    try:
        from imagecodecs import jpegxl_encode
    except ImportError:
        return found
    return found | {"JPEG XL": lambda a: bytes(jpegxl_encode(a, lossless=True, effort=9))}


def _saved(pixels: np.ndarray, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Images (N, h, w) or (N, h, w, 3) side by side, about as wide as high; places without an image are black."""
    n, height, width = images.shape[:3]
    columns = math.ceil(math.sqrt(n * height / width))
    rows = -(-n // columns)
    filled = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    filled[:n] = images
    grid = filled.reshape(rows, columns, *images.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, *images.shape[3:]))
