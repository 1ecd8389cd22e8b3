"""Padding: a row or column of noise is added to an image of odd height or width, so that it can be squeezed.

The flow models the image y and the noise e ~ N(0, I) together. log p(y, e) - log N(e) is one draw of a log-weight whose
exponential has the mean p(y) (augmented flows, Huang et al. 2020, arXiv:2002.07101). The bound is tight if the flow
learns the distribution of the noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.flows.layer import Layer, Shape, total


def even(shape: Shape) -> Shape:
    """(C, H, W) with H and W rounded up to even numbers."""
    channels, height, width = shape
    return channels, height + height % 2, width + width % 2


class Pad(Layer):
    """(C, H, W) -> (C, H or H + 1, W or W + 1), with noise below and to the right."""

    exact = False

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.height, self.width = shape[1:]
        self.padded = even(shape)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add noise from torch's global generator. The log-weight is -log N(e)."""
        z = torch.randn(len(y), *self.padded, dtype=y.dtype, device=y.device)
        log_q = total(-0.5 * z.square() - 0.5 * math.log(2 * math.pi))
        kept = z[..., : self.height, : self.width]
        log_q = log_q - total(-0.5 * kept.square() - 0.5 * math.log(2 * math.pi))
        z[..., : self.height, : self.width] = y
        return z, -log_q

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Remove the noise."""
        return z[..., : self.height, : self.width]
