"""Masked convolutions with colour groups (van den Oord et al. 2016, arXiv:1601.06759, sec. 3.4, fig. 2).

Feature channels are split into one block (a colour group) per colour of the image: group 0 first, then group 1, ….
Taps on pixels above, or to the left in the same row, are not masked. On the centre pixel, output group o sees input
group i if
    mask A (first layer): i < o        the colours already generated
    mask B (all others):  i <= o       and what has been computed for the colour itself
Ours differs only in that widths need not be divisible by the number of colours: the blocks are as even as possible.

B images, D input and D' output channels, H x W pixels, k x k kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import RequestError


def group_sizes(width: int, groups: int) -> list[int]:
    """Channels in each colour group, larger groups first. Raises RequestError for fewer channels than groups."""
    if width < groups:
        raise RequestError(f"a width of {width} cannot be split into {groups} colour groups: give at least {groups}")
    return [width // groups + (g < width % groups) for g in range(groups)]


def group_slices(width: int, groups: int) -> list[slice]:
    """The block of channels of each colour group."""
    ends = list(accumulate(group_sizes(width, groups)))
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def group_of_channel(width: int, groups: int) -> Tensor:
    """Colour group of every channel (width,)."""
    return torch.repeat_interleave(torch.arange(groups), torch.tensor(group_sizes(width, groups)), output_size=width)


def at_offsets(pixels: Tensor, offsets: Iterable[tuple[int, int]]) -> Tensor:
    """Pixels (H, W) bool that lie at one of the offsets (rows down, columns right) from any of the given ones."""
    steps = torch.tensor(list(offsets), dtype=torch.long).view(-1, 2)  # a 1x1 kernel has none
    places = (pixels.nonzero()[:, None] + steps).flatten(0, 1)
    inside = ((places >= 0) & (places < torch.tensor(pixels.shape))).all(1)
    reached = torch.zeros_like(pixels)
    reached[places[inside].unbind(1)] = True
    return reached


class MaskedConv2d(nn.Conv2d):
    """A k x k convolution (B, D, H, W) -> (B, D', H, W), k odd, with mask A or B. Raises RequestError for an even k."""

    mask: Tensor
    bias: nn.Parameter

    def __init__(self, kind: Literal["A", "B"], channels: int, out_channels: int, kernel: int, *, groups: int) -> None:
        if kernel % 2 == 0:
            raise RequestError(f"a masked convolution needs an odd kernel, got {kernel}")
        super().__init__(channels, out_channels, kernel, padding=kernel // 2)
        i, o = group_of_channel(channels, groups), group_of_channel(out_channels, groups)[:, None]
        mask = torch.zeros(out_channels, channels, kernel, kernel)
        mask[:, :, : kernel // 2] = 1
        mask[:, :, kernel // 2, : kernel // 2] = 1
        mask[:, :, kernel // 2, kernel // 2] = ((i < o) if kind == "A" else (i <= o)).float()
        # Not part of the state, because it can be derived. Applied in the computation, so no optimiser can undo it.
        self.register_buffer("mask", mask, persistent=False)
        self.full = kernel == 1 and kind == "B" and groups == 1

    @property
    def masked_weight(self) -> Tensor:
        """What the input is convolved with, (D', D, k, k)."""
        return self.weight if self.full else self.weight * self.mask

    def pixels_read(self, pixels: Tensor) -> Tensor:
        """Other pixels (H, W) bool that are read at any of the given ones."""
        across = range(-(self.kernel_size[0] // 2), self.kernel_size[0] // 2 + 1)
        return at_offsets(pixels, ((row, column) for row in across for column in across if (row, column) < (0, 0)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D', H, W)."""
        return F.conv2d(x, self.masked_weight, self.bias, padding=self.padding)  # type: ignore[arg-type]
