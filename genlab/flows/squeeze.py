"""Squeeze: the pixels of squares of 2 x 2 become channels (Dinh et al. 2017, RealNVP, arXiv:1605.08803, sec. 3.6).

Ours takes the pixels around the square, (0,0) (0,1) (1,1) (1,0), each with all its channels. So the first and the third
are diagonal neighbours, and the second and the fourth. A coupling that changes one diagonal given the other sees all
four direct neighbours of every pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.flows.layer import Layer

AROUND = ((0, 0), (0, 1), (1, 1), (1, 0))


class Squeeze(Layer):
    """(C, H, W) -> (4C, H/2, W/2) for even H and W. The log-determinant is 0."""

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, 4C, H/2, W/2)."""
        return torch.cat([y[..., i::2, j::2] for i, j in AROUND], 1), y.new_zeros(len(y))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, 4C, H/2, W/2) -> (B, C, H, W)."""
        batch, channels, height, width = z.shape
        y = z.new_empty(batch, channels // 4, 2 * height, 2 * width)
        for (i, j), part in zip(AROUND, z.chunk(4, 1), strict=True):
            y[..., i::2, j::2] = part
        return y
