"""The algebra of flows: a layer maps y to z and says by how much it stretches volume.

    log p(y) = log p(z) + log |det dz/dy|

A layer that draws noise u ~ q(u | y) on its way, as dequantisation does, returns log |det| - log q(u | y) instead: one
draw of a log-weight whose exponential has the right mean (Nielsen et al. 2020, arXiv:2007.02731, do the same). So
densities multiply whatever the layers are, and whether the result is exact is the conjunction of their `exact`.

B images; shapes are (C, H, W), without the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Layer(nn.Module):
    """y (B, …) <-> z (B, …). `exact`: no noise is drawn. `context`: features (B, E, h, w) of what is given, or None."""

    exact: bool = True

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y -> z and the log-determinant, or one draw of a log-weight, in nats (B,)."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z -> y. Without noise: what a stochastic layer added is dropped."""
        raise NotImplementedError


class Stack(Layer):
    """Layers one after the other."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.exact = all(layer.exact for layer in self.layers)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-determinants add up."""
        total = y.new_zeros(len(y))
        for layer in self.layers:
            y, log_det = layer(y, context)
            total = total + log_det
        return y, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """From the last layer to the first."""
        for layer in reversed(self.layers):
            z = layer.inverse(z, context)  # type: ignore[operator]
        return z


def resized(context: Tensor | None, y: Tensor) -> Tensor | None:
    """Context features (B, E, h, w) at the size of y (B, C, H, W), by averaging; (B, E, 1, 1) and None as they are."""
    if context is None or context.shape[2:] in ((1, 1), y.shape[2:]):
        return context
    return F.adaptive_avg_pool2d(context, (y.shape[2], y.shape[3]))


def total(each: Tensor) -> Tensor:
    """(B, …) -> sums over all but the batch (B,)."""
    return each.flatten(1).sum(1)
