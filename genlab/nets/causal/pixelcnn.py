"""PixelCNN (van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv:1601.06759, sec. 3.3-3.4, table 1).

A 7x7 convolution of mask A, `depth` residual bottleneck blocks of mask B (ReLU 1x1 to half the width, ReLU 3x3, ReLU
1x1 back), then ReLU, 1x1, ReLU. No pooling: every pixel keeps its own features. The blind spot of the paper is here:
pixels to the upper right beyond the kernel's slope are never seen, however deep the net.

Differs from the paper: the last projection to levels belongs to the head and is shared by the colours of a pixel, each
of which brings its own features. With a head that chains the colours itself, a step is a whole pixel and the net needs
no colour groups. A context adds to what the first layer and every 3x3 compute.

B images, C channels, H x W pixels, D features of a step. Steps are single values, T = C * H * W, in raster order with
the colours of a pixel in turn; or pixels, T = H * W (`chained`). `width` is the paper's 2h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.masked import MaskedConv2d
from genlab.nets.layers.values import Values


class Bottleneck(nn.Module):
    """Residual block of mask B, (B, width, H, W) -> same (fig. 5 of the paper)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.reduce = MaskedConv2d("B", width, width // 2, 1, groups=groups)
        self.conv = MaskedConv2d("B", width // 2, width // 2, 3, groups=groups)
        self.expand = MaskedConv2d("B", width // 2, width, 1, groups=groups)

    def narrow(self, h: Tensor) -> Tensor:
        """What later pixels read of a pixel: (B, width, H, W) -> (B, width / 2, H, W), after the ReLU."""
        return self.reduce(h.relu()).relu_()

    def forward(self, h: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, width, H, W), and from a context (B, width / 2, h, w) -> (B, width, H, W)."""
        middle = self.conv(self.narrow(h))
        if bias is not None:
            middle = middle + bias
        return h + self.expand(middle.relu_())


class PixelCNN(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `width`: channels of the residual stream; `depth`: blocks; `kernel`: of the first layer;
    `feature_width`: D, features per step that the head gets; `value_width`: numbers that stand for a value at the
    input, 1 for its intensity; `chained`: a step is a pixel, not a value.
    """

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = False,
        width: int = 64,
        depth: int = 15,
        kernel: int = 7,
        feature_width: int = 64,
        value_width: int = 8,
    ) -> None:
        super().__init__()
        self.step_channels = spec.channels if chained else 1
        groups = spec.channels // self.step_channels
        if depth < 1 or width < 2 * groups or feature_width < 1:
            raise RequestError(
                f"pixelcnn needs depth >= 1, width >= {2 * groups} and feature_width >= 1, "
                f"got depth={depth}, width={width}, feature_width={feature_width}"
            )
        self.spec, self.width, self.out_width = spec, width, feature_width
        self.values = Values(spec, value_width)
        self.first = MaskedConv2d("A", self.values.channels, width, kernel, groups=groups)
        blocks = nn.ModuleList(Bottleneck(width, groups) for _ in range(depth))
        self.blocks: Sequence[Bottleneck] = blocks  # type: ignore[assignment]  # so that the parts keep their types
        self.last = MaskedConv2d("B", width, feature_width * groups, 1, groups=groups)
        self.biases = LayerBiases(context_width, [width] + depth * [width // 2])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E, h, w) -> (B, T, D)."""
        first, *biases = self.biases(context)
        # A single channel leaves the memory format open, and the stream would be copied to and fro at every block.
        h = self.first(self.values(x)).contiguous(memory_format=torch.channels_last)
        if first is not None:
            h = h + first
        for block, bias in zip(self.blocks, biases, strict=True):
            h = block(h, bias)
        h = self.last(h.relu()).relu()
        return h.permute(0, 2, 3, 1).reshape(len(x), -1, self.out_width)  # colour groups are blocks

    def filters(self) -> Tensor:
        """What a brighter pixel adds to the first layer, (N, C, k, k)."""
        return self.values.contrast(self.first.masked_weight)

    def receptive_field(self, row: int, column: int) -> Tensor:
        """Pixels (H, W) bool that the features of a pixel depend on, itself aside: the past less the blind spot."""
        seen = torch.zeros(self.spec.height, self.spec.width, dtype=torch.bool)
        seen[row, column] = True
        for _ in self.blocks:
            seen = seen | _past(seen, 1)
        seen = _past(seen, self.first.kernel_size[0] // 2)
        seen[row, column] = False
        return seen


def _past(seen: Tensor, reach: int) -> Tensor:
    """Pixels (H, W) that a masked convolution of that reach connects to the pixels `seen`, centre aside."""
    found = torch.zeros_like(seen)
    for y, x in seen.nonzero().tolist():
        found[max(y - reach, 0) : y, max(x - reach, 0) : x + reach + 1] = True
        found[y, max(x - reach, 0) : x] = True
    return found
