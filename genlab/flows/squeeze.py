"""Squares of 2 x 2 pixels become 4 channels (Dinh et al. 2017, arXiv:1605.08803, sec. 3.6).

Ours goes round the square, (0,0) (0,1) (1,1) (1,0), each with all its channels: first and third are diagonal
neighbours, as are second and fourth, so that a coupling of one pair given the other sees all four neighbours of every
pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.flows.layer import Layer

AROUND = ((0, 0), (0, 1), (1, 1), (1, 0))


class Squeeze(Layer):
    """(C, H, W) -> (4C, H/2, W/2), H and W even. Volume stays."""

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Place by place around the square."""
        return torch.cat([y[..., i::2, j::2] for i, j in AROUND], 1), y.new_zeros(len(y))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Back into squares."""
        batch, channels, height, width = z.shape
        y = z.new_empty(batch, channels // 4, 2 * height, 2 * width)
        for (i, j), part in zip(AROUND, z.chunk(4, 1), strict=True):
            y[..., i::2, j::2] = part
        return y
