"""Activation normalisation: every channel is shifted and scaled, at the start to mean 0 and variance 1.

Kingma & Dhariwal 2018 (arXiv:1807.03039, sec. 3.1). Ours keeps the statistics of the first training batch apart from
the learnt shift and scale. The statistics are buffers, so averaged weights copy them instead of averaging them, and
they are restored when a training step that is not finite is undone. A checkpoint contains them together with a flag
that they are set. Evaluation never sets them. On several processes they are those of the batches of all processes
together.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genlab.flows.layer import Layer, Shape
from genlab.system.device import Mirror


class ActNorm(Layer):
    """z = ((y - mean) / std - bias) * exp(log_scale), with one of these numbers for every channel."""

    ready: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels = shape[0]
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self._ready = Mirror()  # the host's copy of `ready`: reading the buffer waits for the GPU
        self._seen = False  # True once `ready` was True before a step; from then on it cannot become False again

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same shape. The first batch in training mode sets the statistics."""
        if self.training and not self._seen:
            self._seen = bool(self._ready.read(self.ready))
            if not self._seen:
                self._start(y.detach())
        z = ((y - self.mean) / self.std - self.bias) * self.log_scale.exp()
        positions = y.shape[2] * y.shape[3]
        return z, (positions * (self.log_scale - self.std.log()).sum()).expand(len(y))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return (z * (-self.log_scale).exp() + self.bias) * self.std + self.mean

    @torch.no_grad()
    def _start(self, y: Tensor) -> None:
        """Set the statistics to those of y (B, C, H, W)."""
        moments = torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3))])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
            moments /= dist.get_world_size()
        mean, square = moments.double()
        self.mean.copy_(mean[:, None, None])
        self.std.copy_((square - mean.square()).clamp(min=1e-6).sqrt()[:, None, None])
        self.ready.fill_(True)
        self._ready.note(self.ready, True)
