"""Encoder and decoder between an image and a smaller grid of vectors (van den Oord et al. 2017, arXiv:1711.00937, 4.1).

Encoder: strided convolutions that each halve the image, then residual blocks (ReLU, 3x3, ReLU, 1x1). Decoder: residual
blocks, then transposed convolutions that each double the grid. Ours differs in that a last 1x1 convolution makes the
vectors narrow. An odd size is rounded up when it is halved, and the extra row or column is cut off on the way back.

B images y (B, C, H, W) in [0, 1]; grid (B, D, h, w); T steps of c values, F features each: (B, T, F).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from genlab.core import ImageSpec
from genlab.nets.coders.conv import check_conv, pad_to_even, sizes

CONFIGURABLE = {"encoder": ("GridEncoder",), "decoder": ("GridDecoder",)}


class Residual(nn.Module):
    """(B, N, h, w) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.mix(self.conv(h.relu()).relu())
        return h + out


class GridEncoder(nn.Module):
    """Images (B, C, H, W) -> grids (B, `outputs`, h, w). `grid`: (h, w).

    `widths`: channels after each halving. `depth`: residual blocks. `kernel`: an even number; 4 is usual.
    """

    adamw_weights = ("layers.0.weight",)  # read the image: not for Muon

    def __init__(
        self, *, spec: ImageSpec, outputs: int, widths: Sequence[int] = (64, 64), depth: int = 2, kernel: int = 4
    ) -> None:
        super().__init__()
        check_conv(widths, kernel)
        self.grid = sizes(spec, len(widths))[-1]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride=2, padding=kernel // 2 - 1) for a, b in pairwise([spec.channels, *widths])
        )
        self.blocks = nn.Sequential(*(Residual(widths[-1]) for _ in range(depth)))
        self.last = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, h, w)."""
        for i, layer in enumerate(self.layers):
            y = layer(pad_to_even(y.relu() if i else y))
        return self.last(self.blocks(y).relu())  # type: ignore[no-any-return]


class GridDecoder(nn.Module):
    """Grids (B, `inputs`, h, w) -> features (B, T, F). `features`: F. `widths`, `depth`: the encoder's."""

    def __init__(
        self,
        *,
        spec: ImageSpec,
        inputs: int,
        step_channels: int,
        features: int,
        widths: Sequence[int] = (64, 64),
        depth: int = 2,
        kernel: int = 4,
    ) -> None:
        super().__init__()
        check_conv(widths, kernel)
        self.features, self.sizes = features, sizes(spec, len(widths))[-2::-1]
        self.first = nn.Conv2d(inputs, widths[-1], 1)
        self.blocks = nn.Sequential(*(Residual(widths[-1]) for _ in range(depth)))
        channels = pairwise([*widths[::-1], spec.channels // step_channels * features])
        up = partial(nn.ConvTranspose2d, kernel_size=kernel, stride=2, padding=kernel // 2 - 1)
        self.layers = nn.ModuleList(up(a, b) for a, b in channels)

    def forward(self, z: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, T, F)."""
        h = self.blocks(self.first(z))
        for layer, (height, width) in zip(self.layers, self.sizes, strict=True):
            h = layer(h.relu())[..., :height, :width]
        return h.permute(0, 2, 3, 1).reshape(len(h), -1, self.features)  # where a step is a colour, a pixel is C steps
