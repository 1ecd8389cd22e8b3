"""Sampling without a cache, the slow, obvious version of every net's `start` and `step`; and what every cache shares.

One step writes the newest value into the image and runs the whole network. It costs T forward passes an image; every
cached net is tested against it, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.core import ImageSpec, from_steps, to_steps


@dataclass
class RecomputeState:
    """The image so far, as steps (B, T, c), the step to come, and what the images are conditioned on (B, E, h, w)."""

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
    rows_alike = False

    def start(
        self,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> RecomputeState:
        """State before the first step or, with `prefix` (images (B, C, H, W), rows), after those rows."""
        values_per_row = self.spec.channels * self.spec.width
        steps = torch.zeros(
            batch, self.spec.dims // self.step_channels, self.step_channels, dtype=torch.long, device=device
        )
        if prefix is None:
            return RecomputeState(steps, 0, context)
        x, rows = prefix
        t = rows * values_per_row // self.step_channels
        steps[:, :t] = to_steps(x.long(), self.step_channels)[:, :t]
        return RecomputeState(steps, t, context)

    def step(self, previous: Tensor | None, state: RecomputeState) -> tuple[Tensor, RecomputeState]:
        """Take in the newest values (B, c), None if the state has them; return features (B, D) of the next step."""
        if previous is not None:
            state.steps[:, state.t - 1] = previous
        h = self(from_steps(state.steps, self.spec), state.context)[:, state.t]  # type: ignore[operator]
        state.t += 1
        return h, state


class Cached(Recompute):
    """Mixin: `start` and `step` from a cache that the net names; `Recompute` has the slow version to compare with.

    `cache(net, batch, device, prefix, context)` is a state, with `reorder`; `advance(previous, state)` one step of it.
    """

    cache: Callable[..., Any]
    advance: Callable[[Tensor | None, Any], Tensor]

    @torch.no_grad()
    def start(
        self,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> Any:
        """Cached state before the first step or, with `prefix` (images (B, C, H, W), rows), after those rows."""
        return self.cache(self, batch, device, prefix, context)

    def step(self, previous: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Newest values (B, c), None if the state has them -> features (B, D) of the next; the state changes in place.

        Under `torch.no_grad` or `inference_mode`: it writes to buffers.
        """
        return self.advance(previous, state), state
