"""Invertible 1x1 convolution: an invertible matrix W = P L U between the channels of every place.

Kingma & Dhariwal 2018 (arXiv:1807.03039, sec. 3.2): P is fixed, L has ones on its diagonal, and the log-determinant is
the sum of U's log-diagonal, whose signs are fixed. Ours starts as a permutation rather than as a random rotation:
pixels whose values are few and often the same are easier to predict from one another than sums of them are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.flows.layer import Layer
from genlab.system.device import inverse


class Mixing(Layer):
    """z = W y at every place. `order`: which channel of y each channel of z is at the start."""

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        channels = len(order)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), in the precision of y whatever the autocast."""
        places = y.shape[2] * y.shape[3]
        with torch.autocast(y.device.type, enabled=False):
            z = torch.einsum("ij,bjhw->bihw", self.weight().to(y.dtype), y)
        return z, (places * self.log_diagonal.sum()).expand(len(y))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W)."""
        return torch.einsum("ij,bjhw->bihw", inverse(self.weight()), z)

    def weight(self) -> Tensor:
        """W (C, C): permutes, then U, then L."""
        lower = self.lower.tril(-1) + torch.eye(len(self.order), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + self.log_diagonal.exp().diag()
        return (lower @ upper)[:, self.order.argsort()]
