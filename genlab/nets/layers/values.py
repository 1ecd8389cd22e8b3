"""How a net reads a pixel value: as a few learnt numbers, as language models read a word (Bengio et al. 2003).

The papers feed the intensity itself. On 8-bit images this makes an important distinction hard to see: an empty pixel
(0) and a nearly empty one (2) differ by less than a hundredth of the range, but their neighbours differ a lot. Ours
gives every level a row of a table. The table starts with the first cosines of the intensity, as in a discrete cosine
transform, so that near levels start alike; then it is learnt. On 8-bit MNIST no other change that we tried lowered
bits/dim as much.

B images, C channels, H x W pixels, K levels, E numbers a value.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError


class Values(nn.Module):
    """Integers (B, C, H, W) -> (B, C E, H, W) in channels_last, the numbers of a colour together.

    `width`: E, 1 or more (RequestError otherwise). With 1 there is nothing to learn: a value is its intensity in
    [-1, 1], so that a black pixel differs from the zeros around the image. E is at most K - 1, because more numbers add
    nothing.
    """

    table: Tensor

    def __init__(self, spec: ImageSpec, width: int) -> None:
        super().__init__()
        if width < 1:
            raise RequestError(f"value_width is how many numbers stand for a value, 1 or more; got {width}")
        self.width = min(width, spec.levels - 1)
        self.channels = spec.channels * self.width
        if self.width == 1:
            self.register_buffer("table", torch.linspace(-1, 1, spec.levels)[:, None], persistent=False)
        else:
            place = (torch.arange(spec.levels) + 0.5) * (math.pi / spec.levels)
            self.table = nn.Parameter(torch.cos(place[:, None] * torch.arange(1, self.width + 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> (B, C E, H, W)."""
        return F.embedding(x.permute(0, 2, 3, 1).long(), self.table).flatten(3).permute(0, 3, 1, 2)

    def contrast(self, weight: Tensor) -> Tensor:
        """What the brightest value adds in place of the darkest to a convolution that reads these numbers.

        Its weights (D, C E, h, w) -> (D, C, h, w).
        """
        span = self.table[-1] - self.table[0]
        return (weight.unflatten(1, (-1, self.width)) * span[:, None, None]).sum(2)

    def put(self, values: Tensor, into: Tensor) -> None:
        """`forward` for one generation step: integers (B, c) -> `into` (B, c E)."""
        into.copy_(F.embedding(values.long(), self.table).flatten(1))
