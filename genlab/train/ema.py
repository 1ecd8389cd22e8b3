"""Exponential moving average of the weights: the copy that is validated, sampled, tested and handed on.

    e_t = d_t e_{t-1} + (1 - d_t) w_t,    d_t = min(decay, (1 + t) / (10 + t)),    t = 1, 2, …

Polyak & Juditsky 1992; the rising d_t forgets the random initial weights in the first few dozen steps (as in
TensorFlow's ExponentialMovingAverage with `num_updates`). Ours is one fused kernel over all tensors, and it copies
the buffers (running statistics, data-dependent initialisation) instead of averaging them.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that is never trained and always in evaluation mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def decay_at(t: int, decay: float) -> float:
    """d_t of the t-th update, t = 1, 2, …"""
    return min(decay, (1 + t) / (10 + t))


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One update of the average, in place."""
    # lerp(e, w, 1 - d) = d e + (1 - d) w
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    copy_buffers(average, model)


@torch.no_grad()
def copy_buffers(to: nn.Module, source: nn.Module) -> None:
    """Buffers of the same architecture, copied in place."""
    for ours, theirs in zip(to.buffers(), source.buffers(), strict=True):
        ours.copy_(theirs)
