"""MADE: a masked autoencoder for distribution estimation (Germain, Gregor, Murray, Larochelle 2015, arXiv:1502.03509).

A multilayer perceptron reads the whole image. Masks on its matrices leave only paths from earlier values to later
features. So one pass gives all conditionals, as in PixelCNN, but every conditional has weights of its own: the net
knows nothing of neighbourhoods, and its size grows with the image.

Ours differs from the paper in four ways. The degrees of hidden units are spread evenly instead of drawn, so that the
units of the earliest steps come first. There is one order of the pixels and one mask, without the paper's averaging
over orders, and no direct connection from input to output. A step has `feature_width` features, which the head reads,
and all steps share the head's projection. A label or the mean of an image's context features is added to every
hidden layer; the context features of a pixel are added to the features of its steps.

B images, C channels, H x W pixels, T steps of c values, E numbers that the net reads for a value, D features of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.masked_linear import MaskedLinear, even_degrees
from genlab.nets.layers.values import Values

CONFIGURABLE = {"net": ("MADE",)}


class Hidden(nn.Module):
    """A masked linear map and ReLU, (B, 1, n) -> (B, 1, m). `bias`: of a context, (B, 1, m), or None."""

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__()
        self.map = MaskedLinear(inputs, outputs)

    def forward(self, h: Tensor, bias: Tensor | None = None) -> Tensor:
        """Units (B, 1, n) -> units (B, 1, m)."""
        out: Tensor = self.map(h)
        return (out if bias is None else out + bias).relu()


class MADE(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `width`: units of a hidden layer; `depth`: number of hidden layers; `feature_width`: D; `value_width`: numbers that
    represent a value at the input (1: its intensity); `chained`: a step is a pixel, not a value. Raises RequestError
    for impossible sizes.
    """

    adamw_weights = ("blocks.0.map.weight",)  # read the image: not for Muon

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = False,
        width: int = 512,
        depth: int = 2,
        feature_width: int = 16,
        value_width: int = 1,
    ) -> None:
        super().__init__()
        if min(width, depth, feature_width) < 1:
            raise RequestError(
                f"made needs width, depth and feature_width of at least 1, got width={width}, depth={depth}, "
                f"feature_width={feature_width}"
            )
        self.spec, self.width, self.out_width = spec, width, feature_width
        self.step_channels = spec.channels if chained else 1
        steps = spec.dims // self.step_channels
        self.values = Values(spec, value_width)
        self.step_width = self.step_channels * self.values.width  # c E numbers of a step
        # A unit of degree d depends on the first d steps, so the features of step t, counted from 0, have degree t.
        self.degrees = even_degrees(width, max(1, steps - 1))
        read = torch.arange(1, steps + 1).repeat_interleave(self.step_width)
        blocks = nn.ModuleList(Hidden(self.degrees if i else read, self.degrees) for i in range(depth))
        self.blocks: Sequence[Hidden] = blocks  # type: ignore[assignment]  # a ModuleList forgets the types
        self.last = MaskedLinear(self.degrees, torch.arange(steps).repeat_interleave(feature_width))
        self.colours = spec.channels // self.step_channels
        self.biases = LayerBiases(context_width, [width] * depth + [feature_width * self.colours])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E', h, w) -> (B, T, D)."""
        *hidden, last = self.biases(context)
        h = self.hidden(x, hidden)[-1]
        out = self.last(h).view(len(x), -1, self.out_width)
        return out if last is None else out + self.step_biases(last)

    def hidden(self, x: Tensor, biases: Sequence[Tensor | None]) -> list[Tensor]:
        """The units of every hidden layer, (B, 1, width) each. `biases`: see `LayerBiases`."""
        h = self.values(x).permute(0, 2, 3, 1).reshape(len(x), 1, -1)
        layers = []
        for block, bias in zip(self.blocks, biases, strict=True):
            h = block(h, None if bias is None else bias.mean((2, 3))[:, None])
            layers.append(h)
        return layers

    def step_biases(self, bias: Tensor) -> Tensor:
        """What a context adds to the features: (B, D G, h, w) for G colours that take turns -> (B, T, D)."""
        every = bias.expand(-1, -1, self.spec.height, self.spec.width)
        return every.permute(0, 2, 3, 1).reshape(len(bias), -1, self.out_width)

    def receptive_field(self, row: int, column: int) -> Tensor:
        """Pixels (H, W) bool, other than itself, that a pixel's features depend on: those that its units read."""
        per_pixel = self.colours
        pixel = row * self.spec.width + column
        step = (pixel + 1) * per_pixel - 1  # the last colour sees most
        below = self.degrees[self.degrees <= step]
        seen = torch.arange(self.spec.height * self.spec.width)
        seen = seen * per_pixel < (int(below.max()) if len(below) else 0)
        seen[pixel] = False
        return seen.view(self.spec.height, self.spec.width)
