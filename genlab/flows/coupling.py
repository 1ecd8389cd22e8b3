"""Couplings: half of the channels are transformed, with parameters that a net computes from the other half.

Affine coupling: shift and scale (RealNVP, Dinh et al. 2017, arXiv:1605.08803, eq. 7-8). Ours bounds the log-scale
softly by +-3 and always changes the first half of the channels; a `Mixing` before it chooses which channels these are.
The net may compute in lower precision. Its outputs are converted to the precision of the values, in which
log-determinants are summed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.flows.layer import Layer, Shape, resized, total

CONFIGURABLE = {"coupling": ("AffineCoupling",)}

LIMIT = 3.0  # bound of a log-scale


class Coupling(Layer):
    """Changes the first C // 2 channels by `transform`, given the others.

    `net(inputs=, outputs=, size=, context_width=)` makes the net. `numbers`: how many parameters `transform` needs for
    every value.
    """

    def __init__(self, shape: Shape, *, net: Callable[..., nn.Module], numbers: int, context_width: int = 0) -> None:
        super().__init__()
        channels, *size = shape
        self.changed, self.numbers = channels // 2, numbers
        self.net = net(
            inputs=channels - self.changed, outputs=numbers * self.changed, size=size, context_width=context_width
        )

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same shape."""
        changed, kept = y[:, : self.changed], y[:, self.changed :]
        z, log_det = self.transform(changed, self.net_outputs(kept, context))
        return torch.cat([z, kept], 1), total(log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        changed, kept = z[:, : self.changed], z[:, self.changed :]
        return torch.cat([self.undo(changed, self.net_outputs(kept, context)), kept], 1)

    def transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y (B, c, H, W), parameters (B, numbers, c, H, W) -> z and ln |dz/dy|, both of the shape of y."""
        raise NotImplementedError

    def undo(self, z: Tensor, parameters: Tensor) -> Tensor:
        """The inverse of `transform`: z (B, c, H, W), parameters (B, numbers, c, H, W) -> y."""
        raise NotImplementedError

    def net_outputs(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """The net's outputs, (B, numbers, c, H, W)."""
        outputs = self.net(kept, resized(context, kept)).to(kept.dtype)
        return outputs.contiguous().unflatten(1, (self.numbers, self.changed))


class AffineCoupling(Coupling):
    """z = y exp(s) + t."""

    def __init__(self, shape: Shape, *, net: Callable[..., nn.Module], context_width: int = 0) -> None:
        super().__init__(shape, net=net, numbers=2, context_width=context_width)

    def transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        log_scale, shift = bounded(parameters[:, 0]), parameters[:, 1]
        return y * log_scale.exp() + shift, log_scale

    def undo(self, z: Tensor, parameters: Tensor) -> Tensor:
        """See `Coupling`."""
        return (z - parameters[:, 1]) * (-bounded(parameters[:, 0])).exp()


def bounded(log_scale: Tensor, limit: float = LIMIT) -> Tensor:
    """A smooth function with values between -limit and limit, close to the identity near 0."""
    return limit * torch.tanh(log_scale / limit)
