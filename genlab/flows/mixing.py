"""Invertible 1x1 convolution: the channels at every position are multiplied by an invertible matrix W.

Kingma & Dhariwal 2018 (Glow, arXiv:1807.03039, sec. 3.2): the matrix is a product of a fixed permutation and two
triangular matrices. L has ones on its diagonal; the diagonal of U is positive, and the log-determinant is the sum of
its logarithms. Ours starts as a permutation and not as a random rotation: pixels with few different values are easier
to predict from each other than sums of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.flows.layer import Layer
from genlab.system.device import inverse


class Mixing(Layer):
    """z = W y at every position. `order`: for each channel of z, the channel of y that it equals at the start."""

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        channels = len(order)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same shape, in the precision of y, also under autocast."""
        positions = y.shape[2] * y.shape[3]
        with torch.autocast(y.device.type, enabled=False):
            z = torch.einsum("ij,bjhw->bihw", self.weight().to(y.dtype), y)
        return z, (positions * self.log_diagonal.sum()).expand(len(y))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return torch.einsum("ij,bjhw->bihw", inverse(self.weight()), z)

    def weight(self) -> Tensor:
        """W (C, C): the permutation, then U, then L."""
        lower = self.lower.tril(-1) + torch.eye(len(self.order), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + self.log_diagonal.exp().diag()
        return (lower @ upper)[:, self.order.argsort()]
