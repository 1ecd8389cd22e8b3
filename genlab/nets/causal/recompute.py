"""Sampling without a cache: the slow, obvious version of `start` and `step` that every causal net has.

One step writes the newest values into the image and runs the whole network, so an image costs T forward passes.
`genlab.nets` gives a class of nets a cache where there is one (`nets/cached/base.py:bind`). Every cache is tested
against `Recompute.start` and `Recompute.step`, step by step.

B images of C channels and H x W pixels, T generation steps of c values each, D features of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.core import ImageSpec, from_steps, to_steps

Prefix = tuple[Tensor, int] | None  # images (B, C, H, W) and how many of their first rows are known


@dataclass
class RecomputeState:
    """The image so far, as steps (B, T, c), the step to come, and the context features (B, E, h, w) or None."""

    steps: Tensor
    t: int
    context: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        self.steps = self.steps[index]
        self.context = None if self.context is None else self.context[index]


class Recompute:
    """Mixin: `start` and `step` of a causal net with `spec`, `step_channels`, `forward(x, context) -> (B, T, D)`."""

    spec: ImageSpec
    step_channels: int
    rows_alike = False  # True if the operations of a step are the same in every row (see `cached.base.Cache`)

    def start(
        self, batch: int, device: torch.device, prefix: Prefix = None, context: Tensor | None = None
    ) -> RecomputeState:
        """State before the first step, or before the first step after the known rows of `prefix`."""
        count = self.spec.dims // self.step_channels
        steps, t = torch.zeros(batch, count, self.step_channels, dtype=torch.long, device=device), 0
        if prefix is not None:
            x, rows = prefix
            t = rows * count // self.spec.height
            steps[:, :t] = to_steps(x.long(), self.step_channels)[:, :t]
        return RecomputeState(steps, t, context)

    def step(self, previous: Tensor | None, state: RecomputeState) -> tuple[Tensor, RecomputeState]:
        """Take in the newest values (B, c), None if the state has them; return features (B, D) of the next step."""
        if previous is not None:
            state.steps[:, state.t - 1] = previous
        h = self(from_steps(state.steps, self.spec), state.context)[:, state.t]  # type: ignore[operator]
        state.t += 1
        return h, state
