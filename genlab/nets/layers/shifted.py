"""Causal convolutions by shifting, and the gated residual block (Salimans et al. 2017, arXiv:1701.05517, sec. 2.3-2.6).

A convolution needs no mask to be causal if its window ends where the past ends:

    "down"        rows above and the own row, columns centred          2x3:  . x .  /  . o .
    "down_right"  rows above and the own row, own column and left of it  2x2:  x .  /  . o

Both see their own position o. Where they must not, `shift_down` or `shift_right` moves what they compute by a row or a
column. All taps are used; of a masked 3x3 convolution half would be zeros.

As in the paper, weights are normalised for each output channel, w = g v / |v| (Salimans and Kingma 2016,
arXiv:1602.07868). Differs from the paper: g does not start from the statistics of a first batch. It starts at the value
that preserves the variance of `concat_elu` of a standard normal, and at a tenth of it where a residual branch ends (the
paper's init_scale 0.1). So nothing depends on a first batch, and a resumed run has nothing to repeat.

B images, F channels of a stream, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import RequestError

MOMENT = 0.645  # E elu(x)^2 of a standard normal x


def shift_down(x: Tensor) -> Tensor:
    """(B, F, H, W) moved down by one row, with zeros in the first row."""
    return F.pad(x, (0, 0, 1, -1))


def shift_right(x: Tensor) -> Tensor:
    """(B, F, H, W) moved to the right by one column, with zeros in the first column."""
    return F.pad(x, (1, -1))


def concat_elu(x: Tensor) -> Tensor:
    """(B, F, H, W) -> elu of x and of -x, (B, 2 F, H, W). Where one half saturates the other is linear."""
    return F.elu(torch.cat([x, -x], 1), inplace=True)


def normed(weight: Tensor, gain: Tensor) -> Tensor:
    """Weights (D', D, kh, kw) scaled to length `gain` (D', 1, 1, 1) in every output channel."""
    return weight * (gain / torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True))


class ShiftedConv2d(nn.Conv2d):
    """A kh x kw convolution of each position and its past: (B, D, H, W) -> (B, D', ceil(H / stride), ceil(W / stride)).

    Output (r, c) sees input rows up to `stride` r, and the columns around `stride` c ("down", kw odd) or up to it
    ("down_right"). So with a stride a coarse position sees no more than its first fine position.
    `scale`: standard deviation of the output at the start, if the input is `concat_elu` of a standard normal.
    """

    bias: nn.Parameter
    padding: tuple[int, int]

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        *,
        kind: Literal["down", "down_right"],
        stride: int = 1,
        scale: float = 1.0,
    ) -> None:
        if kind == "down" and kernel[1] % 2 == 0:
            raise RequestError(f"a centred kernel needs an odd number of columns, got {kernel[0]}x{kernel[1]}")
        columns = kernel[1] // 2 if kind == "down" else kernel[1] - 1
        super().__init__(channels, out_channels, kernel, stride, padding=(kernel[0] - 1, columns))
        self.kind = kind
        nn.init.normal_(self.weight)  # its length has no effect
        nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(torch.full((out_channels, 1, 1, 1), scale / MOMENT**0.5))

    @property
    def normed_weight(self) -> Tensor:
        """(D', D, kh, kw): the weights that the input is convolved with."""
        return normed(self.weight, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D', ceil(H / stride), ceil(W / stride))."""
        height, width = (-(-n // s) for n, s in zip(x.shape[-2:], self.stride, strict=True))
        rows, columns = self.padding
        if x.shape[-1] == 1:  # with a stride, oneDNN's bfloat16 gradients of a padded map of one column are wrong
            x, rows, columns = F.pad(x, (columns, columns, rows, rows)), 0, 0
        y = F.conv2d(x, self.normed_weight, self.bias, self.stride, (rows, columns))  # type: ignore[arg-type]
        return y[:, :, :height, :width]  # cut off the positions that see the future


class GatedResNet(nn.Module):
    """Gated residual block x + a * sigmoid(b), (B, F, H, W) -> same (sec. 2.5-2.6 and the paper's code).

    `conv(channels, out_channels, scale=)` makes the two convolutions of the branch (default: 1x1 ones). `side`:
    channels of a second input, which is added through a 1x1 convolution (0: no second input).
    """

    def __init__(
        self,
        width: int,
        conv: Callable[..., ShiftedConv2d] | None = None,
        *,
        side: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        conv = conv or pointwise
        self.first = conv(2 * width, width)
        self.beside = pointwise(2 * side, width) if side else None
        self.dropout = nn.Dropout(dropout)
        self.second = conv(2 * width, 2 * width, scale=0.1)

    def forward(self, x: Tensor, side: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x (B, F, H, W), side (B, `side`, H, W), bias of a context (B, 2 F, h, w) -> (B, F, H, W)."""
        h = self.first(concat_elu(x))
        if self.beside is not None:
            h = h + self.beside(concat_elu(side))  # type: ignore[arg-type]
        h = self.second(self.dropout(concat_elu(h)))
        if bias is not None:
            h = h + bias
        a, b = h.chunk(2, 1)
        return x + a * b.sigmoid()


def pointwise(channels: int, out_channels: int, *, scale: float = 1.0) -> ShiftedConv2d:
    """A 1x1 convolution (the paper calls it "network in network")."""
    return ShiftedConv2d(channels, out_channels, (1, 1), kind="down_right", scale=scale)


class ShiftedUp2d(nn.Module):
    """The transpose of a strided `ShiftedConv2d`: (B, D, ceil(H / 2), ceil(W / 2)) -> (B, D', H, W).

    Fine row r reads only the coarse row r // 2, which has seen what comes before the fine row 2 (r // 2). The same
    holds for columns ("down_right", 2x2). With "down" (2x3) odd columns also read the coarse column to their right.
    """

    def __init__(self, channels: int, out_channels: int, *, kind: Literal["down", "down_right"]) -> None:
        super().__init__()
        self.columns = 3 if kind == "down" else 2
        self.weight = nn.Parameter(torch.randn(channels, out_channels, 2, self.columns))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = nn.Parameter(torch.full((1, out_channels, 1, 1), 2.0))  # a position gets a quarter of the taps

    @property
    def normed_weight(self) -> Tensor:
        """(D, D', 2, 2 or 3): by row and column in the fine 2 x 2 square; "down" begins one column before it."""
        return self.weight * (self.gain / torch.linalg.vector_norm(self.weight, dim=(0, 2, 3), keepdim=True))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, D, ceil(H / 2), ceil(W / 2)) and (H, W) -> (B, D', H, W)."""
        y = F.conv_transpose2d(x, self.normed_weight, self.bias, stride=2)
        first = self.columns - 2
        return y[:, :, : size[0], first : first + size[1]]
