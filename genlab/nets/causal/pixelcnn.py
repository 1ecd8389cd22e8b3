"""PixelCNN (van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv:1601.06759, sec. 3.3-3.4, table 1).

The net is a 7x7 convolution with mask A, then `depth` residual bottleneck blocks with mask B (ReLU and 1x1 to half the
width, ReLU and 3x3, ReLU and 1x1 back), then ReLU, 1x1, ReLU. There is no pooling: every pixel keeps its own features.
Like the paper's net it has a blind spot: pixels to the upper right, beyond the slope of the kernels, are never seen,
however deep the net is.

Ours differs from the paper in three ways. The last projection, to levels, belongs to the head; all colours of a pixel
share it, each with its own features. If the head chains the colours itself, a step is a whole pixel and the net needs
no colour groups. A context is added to the outputs of the first layer and of every 3x3.

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

CONFIGURABLE = {"net": ("PixelCNN",)}


class Bottleneck(nn.Module):
    """Residual block with mask B, (B, width, H, W) -> same shape (fig. 5 of the paper)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.reduce = MaskedConv2d("B", width, width // 2, 1, groups=groups)
        self.conv = MaskedConv2d("B", width // 2, width // 2, 3, groups=groups)
        self.expand = MaskedConv2d("B", width // 2, width, 1, groups=groups)

    def narrow(self, h: Tensor) -> Tensor:
        """The bottleneck, which is all that later pixels read: (B, width, H, W) -> (B, width / 2, H, W)."""
        return self.reduce(h.relu()).relu_()

    def forward(self, h: Tensor, bias: Tensor | None = None) -> Tensor:
        """Stream (B, width, H, W) and a context's bias (B, width / 2, h, w) or None -> stream (B, width, H, W)."""
        middle = self.conv(self.narrow(h))
        if bias is not None:
            middle = middle + bias
        return h + self.expand(middle.relu_())


class PixelCNN(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `width`: channels of the residual stream; `depth`: number of blocks; `kernel`: size of the first layer's kernel;
    `feature_width`: D, features of a step, which the head reads; `value_width`: numbers that represent a value at the
    input (1: its intensity); `chained`: a step is a pixel, not a value. Raises RequestError for impossible sizes.
    """

    adamw_weights = ("first.weight",)  # read the image: not for Muon

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
        self.blocks: Sequence[Bottleneck] = blocks  # type: ignore[assignment]  # a ModuleList forgets the types
        self.last = MaskedConv2d("B", width, feature_width * groups, 1, groups=groups)
        self.biases = LayerBiases(context_width, [width] + depth * [width // 2])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E, h, w) -> (B, T, D)."""
        first, *biases = self.biases(context)
        # With a single input channel the memory format is ambiguous, and every block would convert the stream twice.
        h = self.first(self.values(x)).contiguous(memory_format=torch.channels_last)
        if first is not None:
            h = h + first
        for block, bias in zip(self.blocks, biases, strict=True):
            h = block(h, bias)
        h = self.last(h.relu()).relu()
        return h.permute(0, 2, 3, 1).reshape(len(x), -1, self.out_width)  # the channels of a colour lie together

    def filters(self) -> Tensor:
        """How the first layer responds to the brightest value in place of the darkest, (N, C, k, k)."""
        return self.values.contrast(self.first.masked_weight)

    def receptive_field(self, row: int, column: int) -> Tensor:
        """Pixels (H, W) bool, other than itself, that a pixel's features depend on: the past without the blind spot."""
        seen = torch.zeros(self.spec.height, self.spec.width, dtype=torch.bool)
        seen[row, column] = True
        for block in self.blocks:
            seen = seen | block.conv.pixels_read(seen)
        seen = self.first.pixels_read(seen)
        seen[row, column] = False
        return seen
