"""A small residual network over a map, for what flows need: features of every place from its neighbourhood.

Pre-activation residual blocks (He et al. 2016, arXiv:1603.05027), here a 3x3 and a 1x1 convolution each, without
normalisation. A learnt map is added at the first layer, so that a place can tell where it is. The last layer starts at
zero (Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 3.3): a coupling begins without an opinion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.nets.layers.context import LayerBiases


class ResNet(nn.Module):
    """(B, `inputs`, H, W) and perhaps context features -> (B, `outputs`, H, W).

    `size`: (H, W). `width`: channels in between, `depth`: blocks. `quiet`: the last layer starts at zero.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        size: Sequence[int],
        context_width: int = 0,
        width: int = 64,
        depth: int = 2,
        quiet: bool = True,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 0:
            raise RequestError(f"a residual network needs width >= 1 and depth >= 0, got {width} and {depth}")
        self.first = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.place = nn.Parameter(torch.zeros(width, *size))
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)]) for _ in range(depth)
        )
        self.biases = LayerBiases(context_width, [width] * (depth + 1))
        self.last = nn.Conv2d(width, outputs, 1)
        if quiet:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """`context`: (B, E, H, W) or (B, E, 1, 1), if it was made with one."""
        start, *biases = self.biases(context)
        h = self.first(h)
        h = h + self.place.to(h.dtype)  # under autocast the sum stays in half precision
        h = h if start is None else h + start
        for block, bias in zip(self.blocks, biases, strict=True):
            change = block[0](h.relu())  # type: ignore[index]
            h = h + block[1]((change if bias is None else change + bias).relu())  # type: ignore[index]
        return self.last(h.relu())
