"""The interface of an invertible layer: y to z and the log-determinant of its Jacobian.

    log p(y) = log p(z) + log |det dz/dy|

A layer that draws noise u ~ q(u | y), as dequantisation does, returns log |det| - log q(u | y) instead. This is one
draw of a log-weight: p(z) times its exponential has the mean p(y) (SurVAE flows, Nielsen et al. 2020, arXiv:2007.02731,
do the same). So log-determinants and log-weights of any layers can be added. The sum is exact if all layers are
`exact`, otherwise it is one draw.

B images. Shapes are (C, H, W), without the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Layer(nn.Module):
    """An invertible map between y (B, …) and z (B, …).

    `exact`: True if no noise is drawn. `context`: features (B, E, h, w) of the context, or None.
    """

    exact: bool = True

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y -> z, and the log-determinant or one draw of a log-weight, in nats (B,)."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z -> y. A layer that adds noise removes it here."""
        raise NotImplementedError


class Stack(Layer):
    """Layers that are applied one after the other."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.exact = all(layer.exact for layer in self.layers)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the layers and sum their log-determinants."""
        total = y.new_zeros(len(y))
        for layer in self.layers:
            y, log_det = layer(y, context)
            total = total + log_det
        return y, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Invert the layers, the last one first."""
        for layer in reversed(self.layers):
            z = layer.inverse(z, context)  # type: ignore[operator]
        return z


def resized(context: Tensor | None, y: Tensor) -> Tensor | None:
    """Average context features (B, E, h, w) to the size of y (B, C, H, W). (B, E, 1, 1) and None are unchanged."""
    if context is None or context.shape[2:] in ((1, 1), y.shape[2:]):
        return context
    return F.adaptive_avg_pool2d(context, (y.shape[2], y.shape[3]))


def total(each: Tensor) -> Tensor:
    """(B, …) -> sums over all dimensions but the batch (B,)."""
    return each.flatten(1).sum(1)
