"""A small residual network from a map to a map of the same size, for the couplings of flows.

Pre-activation residual blocks (He et al. 2016, arXiv:1603.05027). Ours have a 3x3 and a 1x1 convolution each and no
normalisation. A learnt map is added to the first layer's output, so that the network can behave differently at each
position. The last layer starts at zero (Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 3.3), so that at the start the
parameters of a coupling do not depend on its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.nets.layers.context import LayerBiases

CONFIGURABLE = {"net": ("ResNet",)}


class ResNet(nn.Module):
    """(B, `inputs`, H, W), and context features if `context_width` is not 0 -> (B, `outputs`, H, W).

    `size`: (H, W). `width`: channels in between. `depth`: number of blocks. `quiet`: the last layer starts at zero.
    """

    adamw_weights = ("first.weight",)  # read the image: not for Muon

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
        """`context`: (B, E, H, W) or (B, E, 1, 1) with E = `context_width`; None without a context."""
        start, *biases = self.biases(context)
        h = self.first(h)
        h = h + self.place.to(h.dtype)  # so that under autocast the sum stays in half precision
        h = h if start is None else h + start
        for block, bias in zip(self.blocks, biases, strict=True):
            change = block[0](h.relu())  # type: ignore[index]
            h = h + block[1]((change if bias is None else change + bias).relu())  # type: ignore[index]
        return self.last(h.relu())
