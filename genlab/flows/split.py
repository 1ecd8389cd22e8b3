"""Split: some channels are modelled by a Gaussian and leave the flow, which continues with the others.

Dinh et al. 2017 (RealNVP, arXiv:1605.08803, sec. 3.6). Mean and standard deviation of the Gaussian are computed from
the channels that stay, by one convolution (Kingma & Dhariwal 2018, Glow, arXiv:1807.03039). Ours writes the Gaussian as
an affine map to N(0, I), so that the model of all of z is a standard normal distribution. The layer keeps the shape:
the first channels of z are those that leave, and `MultiScale` removes them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.flows.coupling import bounded
from genlab.flows.layer import Layer, Shape, resized, total


class Split(Layer):
    """Standardises the first `leaving` channels of (C, H, W), given the others, the position, and the context."""

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
        """(B, C, H, W) -> the same shape."""
        leaving, kept = y[:, : self.leaving], y[:, self.leaving :]
        mean, log_std = self.gaussian(kept, context)
        z = (leaving - mean) * (-log_std).exp()
        return torch.cat([z, kept], 1), total(-log_std.expand_as(z))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        leaving, kept = z[:, : self.leaving], z[:, self.leaving :]
        mean, log_std = self.gaussian(kept, context)
        return torch.cat([leaving * log_std.exp() + mean, kept], 1)

    def gaussian(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation, (B or 1, leaving, H, W) each."""
        parameters = self.place[None]
        if self.given is not None:
            parameters = parameters + self.given(kept).to(kept.dtype)
        if self.context is not None:
            parameters = parameters + self.context(resized(context, kept)).to(kept.dtype)
        mean, log_std = parameters.chunk(2, 1)
        return mean, bounded(log_std)
