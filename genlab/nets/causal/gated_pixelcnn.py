"""Gated PixelCNN (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu 2016, arXiv:1606.05328).

The net has two stacks instead of one, so that every past pixel is seen (sec. 2.3). The vertical stack reads all rows
above, by (k + 1) / 2 x k convolutions. The horizontal stack reads the current row so far, by 1 x (k + 1) / 2
convolutions; in every layer it also reads, through a 1x1, what the vertical stack computed before its gate (fig. 2).
Nothing flows from the horizontal stack to the vertical one. Both stacks have gates tanh(a) * sigmoid(b). Only the
horizontal stack is residual, from layer 2 on. At its end come ReLU, 1x1, ReLU.

Ours differs from the paper:
- A value enters as a few learnt numbers (see `layers/values.py`).
- The taps of a layer may be spread: `dilations` are the distances, one per layer in turn. A shallow net then sees far.
- Kernels are cropped to the pixels that may be seen, where the paper masks them. The image enters the vertical stack
  one row late. After that its layers may read the row they are on, and need no shift.
- The gate is tanh(a) (1 + tanh(b)) = 2 tanh(a) sigmoid(2b). With rescaled weights this is the same function, but one
  call of tanh computes both halves.
- Only the horizontal stack orders the colours: to the vertical one, which sees rows above, all colours are past. If the
  head chains the colours itself, a step is a whole pixel and there are no groups.
- The last projection, to levels, belongs to the head; all colours of a pixel share it.

B images, C channels, H x W pixels, D features of a step. Steps are single values, T = C * H * W, in raster order with
the colours of a pixel in turn; or pixels, T = H * W (`chained`). `width` is the paper's p: pre-activations have 2p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.masked import MaskedConv2d, at_offsets, group_of_channel
from genlab.nets.layers.tanh import tanh
from genlab.nets.layers.values import Values

CONFIGURABLE = {"net": ("GatedPixelCNN",)}


def gate(a: Tensor) -> Tensor:
    """Pre-activations (B, 2p, H, W), values then gates -> tanh(values) (1 + tanh(gates)), (B, p, H, W)."""
    if torch.compiler.is_compiling():  # the compiler fuses these operations by itself
        value, opening = a.tanh().chunk(2, 1)
        return torch.addcmul(value, value, opening)
    return _Gate.apply(a)  # type: ignore[no-untyped-call]


class _Gate(torch.autograd.Function):
    """`gate` with a backward pass that writes the gradients of both halves into one buffer."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:  # type: ignore[override]
        active = tanh(a)
        ctx.save_for_backward(active)
        value, opening = active.chunk(2, 1)
        return torch.addcmul(value, value, opening)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (active,) = ctx.saved_tensors
        value, opening = active.chunk(2, 1)
        out = torch.empty_like(active)
        of_value, of_opening = out.chunk(2, 1)
        torch.addcmul(gradient, gradient, opening, out=of_value)
        torch.mul(gradient, value, out=of_opening)
        return torch.ops.aten.tanh_backward.grad_input(out, active, grad_input=out)


class LeftConv2d(nn.Conv2d):
    """A row of taps on a pixel and the pixels to its left, (B, D, H, W) -> pre-activations (B, 2p, H, W).

    `strict`: of the pixel itself, only earlier colours are read (mask A). If there are none, it has no tap.
    The value and the gate of a channel belong to the same colour group.
    """

    mask: Tensor

    def __init__(self, channels: int, width: int, kernel: int, dilation: int, *, groups: int, strict: bool) -> None:
        self.centre = groups > 1 or not strict
        super().__init__(channels, 2 * width, (1, kernel // 2 + self.centre), dilation=(1, dilation))
        self.reach = kernel // 2 * dilation
        mask = torch.ones(2 * width, channels, *self.kernel_size)
        if self.centre:
            i, o = group_of_channel(channels, groups), group_of_channel(width, groups).repeat(2)[:, None]
            mask[..., 0, -1] = ((i < o) if strict else (i <= o)).float()
        # Not part of the state, because it can be derived. Applied in the computation, so no optimiser can undo it.
        self.register_buffer("mask", mask, persistent=False)
        self.full = groups == 1

    @property
    def masked_weight(self) -> Tensor:
        """(2p, D, 1, taps)."""
        return self.weight if self.full else self.weight * self.mask

    def forward(self, h: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, 2p, H, W)."""
        beyond = 0 if self.centre else self.dilation[1]
        padded = F.pad(h, (self.reach, 0))[..., : self.reach + h.shape[3] - beyond]
        return F.conv2d(padded, self.masked_weight, self.bias, dilation=self.dilation)  # type: ignore[arg-type]


class GatedLayer(nn.Module):
    """One layer of both stacks, v and h: (B, D, H, W) each -> (B, p, H, W) each (fig. 2 of the paper)."""

    def __init__(self, channels: int, width: int, kernel: int, dilation: int, *, groups: int, first: bool) -> None:
        super().__init__()
        self.first, self.reach = first, kernel // 2 * dilation
        self.vertical = nn.Conv2d(channels, 2 * width, (kernel // 2 + 1, kernel), dilation=dilation)
        self.link = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.horizontal = LeftConv2d(channels, width, kernel, dilation, groups=groups, strict=first)
        self.expand = MaskedConv2d("B", width, width, 1, groups=groups)

    def initialise(self, depth: int) -> None:
        """Start with unit variance along the vertical stack, and with small steps along the residual horizontal one."""
        for conv in (self.vertical, self.link, self.horizontal, self.expand):
            fan_in = conv.weight[0].numel()
            nn.init.normal_(conv.weight, std=fan_in**-0.5)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        for conv in (self.link, self.horizontal):  # their outputs are added
            conv.weight.data *= 0.5**0.5
        if not self.first:
            self.expand.weight.data *= depth**-0.5

    def above(self, v: Tensor, bias: Tensor | None) -> Tensor:
        """Pre-activations (B, 2p, H, W) of the vertical stack."""
        a = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        return a if bias is None else a + bias

    def forward(
        self, v: Tensor, h: Tensor, biases: Sequence[Tensor | None] = (None, None), last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The stacks, and a context's bias (B, 2p, h, w) for each -> the stacks. The last layer returns v unchanged."""
        a = self.above(v, biases[0])
        b = self.link(a).add_(self.horizontal(h))  # no convolution needs its output again
        if biases[1] is not None:
            b = b.add_(biases[1])
        added = self.expand(gate(b))
        return v if last else gate(a), added if self.first else added.add_(h)


class GatedPixelCNN(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `width`: p, channels of each stack; `depth`: number of layers; `kernel`: odd, 3 or more; `dilations`: distances of
    the taps, one per layer in turn (None: 1); `feature_width`: D, features of a step, which the head reads;
    `value_width`: numbers that represent a value at the input (1: its intensity); `chained`: a step is a pixel, not a
    value. Raises RequestError for impossible sizes.
    """

    adamw_weights = ("blocks.0.vertical.weight", "blocks.0.horizontal.weight")  # read the image: not for Muon

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = False,
        width: int = 128,
        depth: int = 15,
        kernel: int = 3,
        dilations: Sequence[int] | None = None,
        feature_width: int = 128,
        value_width: int = 8,
    ) -> None:
        super().__init__()
        self.step_channels = spec.channels if chained else 1
        groups = spec.channels // self.step_channels
        dilations = list(dilations or [1])
        if depth < 1 or width < groups or feature_width < 1:
            raise RequestError(
                f"gated_pixelcnn needs depth >= 1, width >= {groups} and feature_width >= 1, "
                f"got depth={depth}, width={width}, feature_width={feature_width}"
            )
        if kernel < 3 or kernel % 2 == 0 or min(dilations) < 1:
            raise RequestError(
                f"gated_pixelcnn needs an odd kernel >= 3 and dilations >= 1, "
                f"got kernel={kernel}, dilations={dilations}"
            )
        self.spec, self.width, self.out_width = spec, width, feature_width
        self.values = Values(spec, value_width)
        inputs = [self.values.channels] + (depth - 1) * [width]
        layers = nn.ModuleList(
            GatedLayer(channels, width, kernel, dilations[i % len(dilations)], groups=groups, first=i == 0)
            for i, channels in enumerate(inputs)
        )
        self.blocks: Sequence[GatedLayer] = layers  # type: ignore[assignment]  # a ModuleList forgets the types
        for layer in self.blocks:
            layer.initialise(depth)
        self.last = MaskedConv2d("B", width, feature_width * groups, 1, groups=groups)
        self.biases = LayerBiases(context_width, 2 * depth * [2 * width])  # of each layer, vertical then horizontal

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E, h, w) -> (B, T, D)."""
        biases = self.biases(context)
        # With a single input channel the memory format is ambiguous, and every layer would convert the stream twice.
        h = self.values(x).contiguous(memory_format=torch.channels_last)
        v = F.pad(h, (0, 0, 1, -1))  # one row late: only rows above are seen
        for i, layer in enumerate(self.blocks):
            v, h = layer(v, h, biases[2 * i : 2 * i + 2], last=i + 1 == len(self.blocks))
        h = self.last(h.relu()).relu()
        return h.permute(0, 2, 3, 1).reshape(len(x), -1, self.out_width)  # the channels of a colour lie together

    def filters(self) -> Tensor:
        """How the first vertical layer responds to the brightest value, not the darkest, (N, C, k // 2 + 1, k)."""
        return self.values.contrast(self.blocks[0].vertical.weight)

    def receptive_field(self, row: int, column: int) -> Tensor:
        """Pixels (H, W) bool, other than itself, that a pixel's features depend on."""
        h = torch.zeros(self.spec.height, self.spec.width, dtype=torch.bool)
        v = h.clone()
        h[row, column] = True
        for layer in reversed(self.blocks):
            (rows, columns), (d, _) = layer.vertical.kernel_size, layer.vertical.dilation
            sides = range(-(columns // 2), columns // 2 + 1)
            v = at_offsets(v | h, ((-d * i, d * j) for i in range(rows) for j in sides))
            h = at_offsets(h, ((0, -d * i) for i in range(not layer.horizontal.centre, rows)))
        seen = at_offsets(v, [(-1, 0)]) | h
        seen[row, column] = False
        return seen
