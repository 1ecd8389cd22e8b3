"""Grids of integer images as PNG files, with a caption below, which are written completely or not at all.

N images (N, C, H, W); the grids have C channels if C is 1 or 3, otherwise three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from genlab.core import ImageSpec
from genlab.system.atomic import atomically

BORDER = 2  # pixels between and around the images of a grid
MID_GREY = 128
LETTERS = 13  # height of the letters of a caption, in pixels
NARROWEST = 260  # pixels: a narrower grid with a caption gets white space beside it


def to_uint8(x: Tensor, spec: ImageSpec) -> Tensor:
    """Integers in 0..K-1 -> integers in 0..255, rounded, uint8 on the CPU. 8-bit images do not change."""
    if spec.levels == 256:
        return x.to("cpu", torch.uint8)
    return (x.cpu().long() * 255 / (spec.levels - 1)).round().to(torch.uint8)


def grid(x: Tensor, spec: ImageSpec, columns: int | None = None) -> Image.Image:
    """Images x (N, C, H, W) row by row on mid-grey; by default about as many rows as columns.

    Images smaller than 64 pixels are enlarged by a whole factor.
    """
    columns = columns or math.ceil(math.sqrt(len(x)))
    sheet = make_grid(to_uint8(x, spec), nrow=columns, padding=BORDER, pad_value=MID_GREY)
    if len(x) == 1:  # make_grid gives a single image no border
        sheet = F.pad(sheet, [BORDER] * 4, value=MID_GREY)
    empty = max(columns - len(x), 0)  # and it makes no columns that stay empty
    sheet = F.pad(sheet, [0, empty * (spec.width + BORDER)], value=MID_GREY)
    pixels = sheet.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if spec.channels == 1 else _to_rgb(pixels))
    scale = max(1, 64 // max(spec.height, spec.width))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """The picture above a white strip with the caption in black, on as many lines as it needs."""
    import matplotlib  # for its font, which has most letters; slow to import

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), LETTERS)
    margin = LETTERS // 2
    width = max(picture.width, NARROWEST)
    lines = wrapped(caption, lambda text: font.getlength(text) <= width - 2 * margin)
    line_height = LETTERS * 3 // 2
    sheet = Image.new(picture.mode, (width, picture.height + len(lines) * line_height + margin), "white")
    sheet.paste(picture)
    for number, line in enumerate(lines):
        place = (margin, picture.height + margin // 2 + number * line_height)
        ImageDraw.Draw(sheet).text(place, line, fill="black", font=font)
    return sheet


def wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The words of a text in lines that fit. A word that does not fit alone is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
            continue
        while word and not fits(word):
            end = next((i for i in range(len(word), 1, -1) if fits(word[:i])), 1)
            lines.append(word[:end])
            word = word[end:]
        lines.append(word)
    return [line for line in lines if line]


def save_grid(path: Path, x: Tensor, spec: ImageSpec, columns: int | None = None, caption: str = "") -> None:
    """Write `grid` as a PNG, with the caption below it if there is one."""
    picture = grid(x, spec, columns)
    sheet = captioned(picture, caption) if caption else picture
    save_whole_file(path, lambda temporary: sheet.save(temporary, format="PNG"))


def save_whole_file(path: Path, save: Callable[[Path], object]) -> None:
    """Call `save` with a temporary name, then rename the file to `path`, so that the file is never incomplete.

    A missing folder is made.
    """
    with atomically(path) as temporary:
        save(temporary)


def signed(weights: Tensor) -> Tensor:
    """Weights (N, C, h, w) -> integers in 1..255: 128 is zero, larger is positive.

    Each of the N tiles is scaled by its own largest magnitude.
    """
    largest = weights.abs().flatten(1).amax(1).clamp_min(torch.finfo(weights.dtype).tiny)
    return (MID_GREY + 127 * weights / largest[:, None, None, None]).round().long().cpu()


def _to_rgb(pixels):  # type: ignore[no-untyped-def]
    """Pixels (H, W, C) with C >= 2 -> three channels: the first three, or two and a black one."""
    rgb = torch.zeros(*pixels.shape[:2], 3, dtype=torch.uint8).numpy()
    channels = min(3, pixels.shape[-1])
    rgb[..., :channels] = pixels[..., :channels]
    return rgb
