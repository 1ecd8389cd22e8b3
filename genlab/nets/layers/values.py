"""What a net reads of a value: a few learnt numbers, as language models read a word (Bengio et al. 2003).

The papers feed the intensity itself. On 8-bit images that hides from the first layer what matters most: an empty pixel
(0) and a nearly empty one (2) differ by a hundredth of the range, yet say different things of their neighbours. Ours
gives every level a row of a table. It begins as the first cosines of the intensity (smooth: near levels begin alike, as
in a DCT), and is learnt from there. On 8-bit MNIST nothing else that we tried is worth as much.

B images, C channels, H x W pixels, K levels, E numbers a value.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError


class Values(nn.Module):
    """Integers (B, C, H, W) -> (B, C E, H, W), the numbers of a colour together, channels_last.

    `width`: E; 1 is the intensity in [-1, 1] as it is, with nothing to learn: so that a black pixel differs from the
    zeros around the image. More than K - 1 numbers could say no more, and are left out.
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
        """Weights of a convolution that reads these numbers, (D, C E, h, w) -> (D, C, h, w): what the brightest value
        instead of the darkest adds, from each place.
        """
        span = self.table[-1] - self.table[0]
        return (weight.unflatten(1, (-1, self.width)) * span[:, None, None]).sum(2)

    def put(self, values: Tensor, into: Tensor) -> None:
        """`forward` of one step of a cache: integers (B, c) -> into (B, c E)."""
        into.copy_(F.embedding(values.long(), self.table).flatten(1))
