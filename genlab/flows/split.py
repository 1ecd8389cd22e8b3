"""Split: some channels are given their place in a Gaussian and leave; the flow goes on with the others.

Dinh et al. 2017 (arXiv:1605.08803, sec. 3.6), with the Gaussian's mean and deviation computed from the channels that
stay by one convolution (Kingma & Dhariwal 2018, arXiv:1807.03039). Ours writes the Gaussian as an affine map onto
N(0, I), so that all of z is standard normal whatever was learnt, and the layer keeps the shape: what leaves are the
first channels of z, and `MultiScale` takes them off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.flows.coupling import bounded
from genlab.flows.layer import Layer, Shape, resized, total


class Split(Layer):
    """The first `leaving` channels of (C, H, W), standardised given the rest, the place, and the context."""

    def __init__(self, shape: Shape, *, leaving: int, context_width: int = 0) -> None:
        super().__init__()
        channels, height, width = shape
        self.leaving = leaving
        self.place = nn.Parameter(torch.zeros(2 * leaving, height, width))
        self.given = (
            nn.Conv2d(channels - leaving, 2 * leaving, 3, padding=1, bias=False) if leaving < channels else None
        )
        self.context = nn.Conv2d(context_width, 2 * leaving, 1, bias=False) if context_width else None
        for conv in (self.given, self.context):
            if conv is not None:
                nn.init.zeros_(conv.weight)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W)."""
        leaving, kept = y[:, : self.leaving], y[:, self.leaving :]
        mean, log_std = self._gaussian(kept, context)
        z = (leaving - mean) * (-log_std).exp()
        return torch.cat([z, kept], 1), total(-log_std.expand_as(z))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W)."""
        leaving, kept = z[:, : self.leaving], z[:, self.leaving :]
        mean, log_std = self._gaussian(kept, context)
        return torch.cat([leaving * log_std.exp() + mean, kept], 1)

    def _gaussian(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation, each (B or 1, leaving, H, W)."""
        found = self.place[None]
        if self.given is not None:
            found = found + self.given(kept).to(kept.dtype)
        if self.context is not None:
            found = found + self.context(resized(context, kept)).to(kept.dtype)
        mean, log_std = found.chunk(2, 1)
        return mean, bounded(log_std)
