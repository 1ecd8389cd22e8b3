"""Intensities of neighbouring pixels, which the head of an autoregressive model reads beside the net's features.

Natural images are smooth: left + above - above left predicts a value to within a few levels, which is how lossless
codecs begin (Weinberger, Seroussi, Sapiro 2000, "The LOCO-I lossless image compression algorithm"). A narrow net has to
carry these intensities through all of its layers. Here they reach the head directly, whose means start as a linear
prediction from them; the net learns the rest.

    . . 6 . .
    . 3 2 4 .      the pixels that are read, in this order; x is the pixel of the step
    5 1 x

A step of a single value of colour g reads them colour by colour, g first, then g - 1, …, in a cycle, and after them
the colours of its own pixel that come before it. So one head fits all colours. Pixels outside of the image are 0, the
middle of the range.

B images, C channels, H x W pixels, T steps of c values, k features of a step.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec

OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))  # rows up and columns to the left
WEIGHTS = (0.6, 0.6, -0.2, 0.0, 0.0, 0.0)  # of the linear prediction that the means start from
REACH = 2


@runtime_checkable
class Predicting(Protocol):
    """A head of real-valued means, which can start as a linear prediction from features."""

    def predict(self, weights: Tensor) -> None:
        """Let the means of the c values of a step start at `weights` (c, k) times the last k features of the step."""


class Neighbours(nn.Module):
    """Integer images (B, C, H, W) -> features (B, T, k) of earlier pixels, on [-1, 1]. There is nothing to learn."""

    def __init__(self, spec: ImageSpec, step_channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.colours = spec.channels // step_channels  # steps of a pixel
        self.width = spec.channels * len(OFFSETS) + self.colours - 1

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, C, H, W) -> (B, T, k)."""
        image = self.scaled(x, dtype)
        height, width = image.shape[2:]
        padded = F.pad(image, (REACH, REACH, REACH, 0))
        near = torch.stack(
            [padded[:, :, REACH - up :, REACH - left :][:, :, :height, :width] for up, left in OFFSETS], 2
        )
        steps = [self.of_colour(near, image, colour) for colour in range(self.colours)]  # each (B, k, H, W)
        return torch.stack(steps, -1).permute(0, 2, 3, 4, 1).flatten(1, 3)

    def scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Levels 0..K-1 -> [-1, 1]."""
        return x.to(dtype) * (2 / (self.spec.levels - 1)) - 1

    def of_colour(self, near: Tensor, own: Tensor, colour: int) -> Tensor:
        """Neighbours (B, C, 6, …) and the pixel itself (B, C, …) -> features (B, k, …) of its step `colour`."""
        if self.colours == 1:
            return near.flatten(1, 2)
        order = [(colour - i) % self.colours for i in range(self.colours)]
        earlier = [own[:, colour - i] if i <= colour else torch.zeros_like(own[:, 0]) for i in range(1, self.colours)]
        return torch.cat([near[:, order].flatten(1, 2), torch.stack(earlier, 1)], 1)

    def prediction(self) -> Tensor:
        """Weights (c, k) of the features in the linear prediction of the c values of a step."""
        weights = torch.zeros(self.spec.channels // self.colours, self.width)
        for channel, row in enumerate(weights):  # a step of a single value has its own colour first
            row[channel * len(OFFSETS) : (channel + 1) * len(OFFSETS)] = torch.tensor(WEIGHTS)
        return weights


class WithNeighbours:
    """A causal net and `Neighbours`, for sampling: `start` and `step` as those of the net, with features of both."""

    def __init__(self, net: Any, neighbours: Neighbours) -> None:
        self.net, self.neighbours = net, neighbours
        self.step_channels, self.rows_alike = net.step_channels, net.rows_alike

    def start(self, batch: int, device: torch.device, prefix: Any = None, context: Tensor | None = None) -> State:
        """The state before the first step after the known rows of `prefix` (images, rows)."""
        return State(self.net.start(batch, device, prefix, context), self, batch, device, prefix)

    def step(self, previous: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Take in the values (B, c) of the step before, None if they are known; -> features (B, D + k)."""
        h, state.inner = self.net.step(previous, state.inner)
        return torch.cat([h, state.features(previous)], -1), state


class State:
    """The state of the net and the last three rows (B, C, 3, W + 4), padded with zeros; the newest row is the last."""

    def __init__(self, inner: Any, owner: WithNeighbours, batch: int, device: torch.device, prefix: Any) -> None:
        self.inner, self.neighbours = inner, owner.neighbours
        spec, dtype = self.neighbours.spec, next(owner.net.parameters()).dtype
        self.row_steps = spec.width * self.neighbours.colours
        self.serial_from = getattr(inner, "serial_from", self.row_steps)
        self.place = 0  # of the step to come, in its row
        self.recent = torch.zeros(batch, spec.channels, 1 + REACH, spec.width + 2 * REACH, dtype=dtype, device=device)
        if prefix is not None and prefix[1] > 0:
            x, rows = prefix
            known = self.neighbours.scaled(x[:, :, max(0, rows - REACH) : rows], dtype)
            self.recent[:, :, REACH - known.shape[2] : REACH, REACH:-REACH] = known

    def features(self, previous: Tensor | None) -> Tensor:
        """Take in the values (B, c) of the step before; -> features (B, k) of the next step."""
        colours = self.neighbours.colours
        if previous is not None:
            column, colour = divmod((self.place or self.row_steps) - 1, colours)
            values = self.neighbours.scaled(previous, self.recent.dtype)
            self.recent[:, slice(colour, colour + 1) if colours > 1 else slice(None), REACH, REACH + column] = values
            if self.place == 0:
                self.recent[:, :, :REACH] = self.recent[:, :, 1:].clone()
                self.recent[:, :, REACH] = 0
        column, colour = divmod(self.place, colours)
        self.place = (self.place + 1) % self.row_steps
        near = torch.stack([self.recent[:, :, REACH - up, REACH + column - left] for up, left in OFFSETS], 2)
        return self.neighbours.of_colour(near, self.recent[:, :, REACH, REACH + column], colour)

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        self.inner.reorder(index)
        self.recent = self.recent[index]
