"""Pictures beside heat maps of the bits that each pixel takes.

n images (n, C, H, W), their maps (n, H, W) in bits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genlab.core import ImageSpec
from genlab.viz.grids import save_grid, to_uint8


def coloured(maps: Tensor, most: float) -> Tensor:
    """Bits (n, H, W) -> colours (n, 3, H, W), 0..255: black for 0 bits, over red and yellow to white for `most`."""
    import matplotlib

    table = torch.from_numpy(matplotlib.colormaps["inferno"](torch.linspace(0, 1, 256).numpy())[:, :3] * 255)
    index = (maps.cpu().clamp(0, most) * (255 / most)).round().long()
    return table.round().long()[index].permute(0, 3, 1, 2)


def beside(x: Tensor, maps: Tensor | None, spec: ImageSpec, most: float) -> tuple[Tensor, ImageSpec]:
    """Images and their heat maps in turn, (2 n, 3, H, W), and their spec; only the images where `maps` is None."""
    rgb = to_uint8(x, spec).long()
    rgb = rgb if spec.channels == 3 else rgb[:, :1].expand(-1, 3, -1, -1)
    if maps is not None:
        rgb = torch.stack([rgb, coloured(maps, most)], 1).flatten(0, 1)
    return rgb, ImageSpec(3, spec.height, spec.width)


def save_beside(path: Path, x: Tensor, maps: Tensor | None, spec: ImageSpec, most: float, columns: int) -> None:
    """Write `beside` as a grid, `columns` images with their maps in a row."""
    pictures, picture_spec = beside(x, maps, spec, most)
    save_grid(path, pictures, picture_spec, columns * (1 if maps is None else 2))
