"""Exponential moving average of the weights: the copy that is validated, sampled, tested and loaded.

    e_t = d_t e_{t-1} + (1 - d_t) w_t,    d_t = min(decay, (1 + t) / (10 + t)),    t = 1, 2, …

Polyak & Juditsky 1992. The small d_t of the first few dozen steps removes the random initial weights, as in
TensorFlow's ExponentialMovingAverage with `num_updates`. Buffers (running statistics, data-dependent initialisation)
are copied, not averaged.

The update is that of torch.optim.swa_utils. Its class AveragedModel is not used: its first update copies the weights
instead of averaging them, and its state has other keys than the `ema.*` of our checkpoints.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genlab.train.buffers import varying


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that is never trained and always in evaluation mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def decay_at(t: int, decay: float) -> float:
    """d_t of the t-th update, t = 1, 2, …"""
    return min(decay, (1 + t) / (10 + t))


def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One update of the average, in place: average = decay * average + (1 - decay) * model."""
    get_ema_multi_avg_fn(decay)(tuple(average.parameters()), tuple(model.parameters()), 0)
    copy_buffers(average, model)


@torch.no_grad()
def copy_buffers(target: nn.Module, source: nn.Module) -> None:
    """Copy the buffers of `source` that change in training to `target`, a model of the same architecture, in place."""
    for old, new in zip(varying(target), varying(source), strict=True):
        old.copy_(new)
