"""The flow of an image: couplings between neighbouring pixels, coarser and coarser.

A level makes 2 x 2 squares into four parts, couples them in `steps` steps (`ActNorm`, `Mixing`, coupling), and splits:
three parts leave, and the fourth, every second pixel of every second row, is the image of the next level. At the start
the steps take turns to change first one diagonal of the squares given the other, then the upper pair given the lower
one, and the fourth part is never changed.

Multi-scale as Dinh et al. 2017 (arXiv:1605.08803) with the steps of Kingma & Dhariwal 2018 (arXiv:1807.03039). They let
half of the channels leave and so double them at each level; ours keeps their number, and each level costs a quarter of
the one before.
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


class MultiScale(Layer):
    """(C, H, W) -> z (D,), standard normal. `coupling(shape, context_width=)` arrives unfinished.

    `levels`: squeezes; fewer where an image of one pixel is left before. `steps`: couplings of a level.
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
        """(B, C, H, W) -> (B, D); D is larger than the image where it was padded."""
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
    """The order of 4 * channels channels in which the second and the third of four parts change places."""
    parts = [range(part * channels, (part + 1) * channels) for part in (0, 2, 1, 3)]
    return list(itertools.chain(*parts))
