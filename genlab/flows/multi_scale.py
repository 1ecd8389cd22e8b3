"""A multi-scale flow for images: couplings between neighbouring pixels, at coarser and coarser resolutions.

A level squeezes squares of 2 x 2 pixels into four parts and couples them in `steps` steps of `ActNorm`, `Mixing` and a
coupling. Then it splits: three parts leave the flow, and the fourth, every second pixel of every second row, is the
image of the next level. At the start, the steps change in turn one diagonal of the squares given the other, and the
upper pair given the lower one, so that the fourth part is never changed.

The multi-scale architecture is that of Dinh et al. 2017 (RealNVP, arXiv:1605.08803), the steps are those of Kingma &
Dhariwal 2018 (Glow, arXiv:1807.03039). In these papers half of the channels leave, so the number of channels doubles
from level to level. In ours it stays the same, and each level costs a quarter of the level before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.flows.actnorm import ActNorm
from genlab.flows.layer import Layer, Shape, Stack
from genlab.flows.mixing import Mixing
from genlab.flows.pad import Pad, even
from genlab.flows.split import Split
from genlab.flows.squeeze import Squeeze

CONFIGURABLE = {"flow": ("MultiScale",)}


class MultiScale(Layer):
    """(C, H, W) -> z (D,), which the model takes to be standard normal.

    `coupling(shape, context_width=)` makes a coupling. `levels`: number of squeezes; there are fewer if an image of one
    pixel is left earlier. `steps`: couplings of a level. D is larger than C * H * W where the image was padded.
    """

    def __init__(
        self, shape: Shape, *, coupling: Callable[..., Layer], levels: int, steps: int, context_width: int = 0
    ) -> None:
        super().__init__()
        if levels < 1 or steps < 1:
            raise RequestError(f"a multi-scale flow needs levels and steps of 1 or more, got {levels} and {steps}")
        channels = shape[0]
        self.levels, self.splits, self.shapes = nn.ModuleList(), nn.ModuleList(), []
        for level in range(levels):
            if level and shape[1:] == (1, 1):
                break
            stack: list[Layer] = [] if even(shape) == shape else [Pad(shape)]
            shape = 4 * channels, even(shape)[1] // 2, even(shape)[2] // 2
            stack.append(Squeeze())
            for _ in range(steps):
                stack += [
                    ActNorm(shape),
                    Mixing(_middle_swapped(channels)),
                    coupling(shape, context_width=context_width),
                ]
            self.levels.append(Stack(stack))
            self.splits.append(Split(shape, leaving=3 * channels, context_width=context_width))
            self.shapes.append((3 * channels, *shape[1:]))
            shape = channels, *shape[1:]
        self.top = Stack([ActNorm(shape), Split(shape, leaving=channels, context_width=context_width)])
        self.shapes.append(shape)
        self.dims = sum(c * h * w for c, h, w in self.shapes)
        self.exact = all(level.exact for level in self.levels)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, D)."""
        parts, total = [], y.new_zeros(len(y))
        for level, split, (leaving, *_) in zip(self.levels, self.splits, self.shapes, strict=False):
            y, log_det = level(y, context)
            z, log_scale = split(y, context)
            parts.append(z[:, :leaving].flatten(1))
            y, total = z[:, leaving:], total + log_det + log_scale
        z, log_det = self.top(y, context)
        return torch.cat([*parts, z.flatten(1)], 1), total + log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, D) -> (B, C, H, W)."""
        sizes = [c * h * w for c, h, w in self.shapes]
        *parts, top = (part.unflatten(1, shape) for part, shape in zip(z.split(sizes, 1), self.shapes, strict=True))
        y = self.top.inverse(top, context)
        for level, split, part in zip(reversed(self.levels), reversed(self.splits), reversed(parts), strict=True):
            y = level.inverse(split.inverse(torch.cat([part, y], 1), context), context)  # type: ignore[operator]
        return y


def _middle_swapped(channels: int) -> list[int]:
    """The order of 4 * channels channels that swaps the second and the third of four parts."""
    parts = [range(part * channels, (part + 1) * channels) for part in (0, 2, 1, 3)]
    return list(itertools.chain(*parts))
