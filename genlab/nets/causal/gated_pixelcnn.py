"""Gated PixelCNN (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu 2016, arXiv:1606.05328).

Two stacks instead of one, so that no past pixel stays unseen (sec. 2.3): the vertical stack reads all rows above, by
(k + 1) / 2 x k convolutions; the horizontal stack reads the row so far, by 1 x (k + 1) / 2 convolutions, and in every
layer what the vertical stack computed before its gate, through a 1x1 (fig. 2). Nothing flows back. Both stacks pass a
gate tanh(a) * sigmoid(b); the horizontal one alone is residual, from layer 2 on. Then ReLU, 1x1, ReLU.

Differs from the paper:
- A value enters as a few learnt numbers (see `values`).
- `dilations` spread the taps of a layer, one distance per layer in turn, so that a shallow net sees far.
- Kernels are cropped to what may be seen instead of masked; the image enters the vertical stack one row late, after
  which its layers read the row they are on, and need no shift.
- The gate is tanh(a) (1 + tanh(b)) = 2 tanh(a) sigmoid(2b): the same functions of rescaled weights, with one
  transcendental function over all channels.
- Colours are ordered in the horizontal stack alone: rows above are past for all of them. With a head that chains the
  colours itself, a step is a whole pixel and there are no groups.
- The last projection to levels belongs to the head and is shared by the colours of a pixel.

B images, C channels, H x W pixels, D features of a step. Steps are single values, T = C * H * W, in raster order with
the colours of a pixel in turn; or pixels, T = H * W (`chained`). `width` is the paper's p: pre-activations have 2p.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.masked import MaskedConv2d, group_of_channel
from genlab.nets.layers.values import Values


def gate(a: Tensor) -> Tensor:
    """Pre-activations (B, 2p, H, W), values then gates -> tanh(values) (1 + tanh(gates)), (B, p, H, W)."""
    if torch.compiler.is_compiling():  # the compiler makes one pass of it by itself
        value, opening = a.tanh().chunk(2, 1)
        return torch.addcmul(value, value, opening)
    return _Gate.apply(a)  # type: ignore[no-untyped-call]


class _Gate(torch.autograd.Function):
    """The same with a backward pass that writes both halves where they belong of one buffer."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:  # type: ignore[override]
        # A CPU takes its time over tanh in bf16: there, the way through float32 is three times as fast.
        detour = a.dtype == torch.bfloat16 and a.device.type == "cpu"
        tanh = a.float().tanh_().to(a.dtype) if detour else a.tanh()
        ctx.save_for_backward(tanh)
        value, opening = tanh.chunk(2, 1)
        return torch.addcmul(value, value, opening)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (tanh,) = ctx.saved_tensors
        value, opening = tanh.chunk(2, 1)
        out = torch.empty_like(tanh)
        of_value, of_opening = out.chunk(2, 1)
        torch.addcmul(gradient, gradient, opening, out=of_value)
        torch.mul(gradient, value, out=of_opening)
        return torch.ops.aten.tanh_backward.grad_input(out, tanh, grad_input=out)


class LeftConv2d(nn.Conv2d):
    """A row of taps on a pixel and those to its left, (B, D, H, W) -> pre-activations (B, 2p, H, W).

    `strict`: on the pixel itself, only colours before one's own (mask A); its tap is left out when there are none.
    Values and gates of a channel belong to the same colour group.
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
        self.register_buffer("mask", mask, persistent=False)  # derived, and applied in the computation
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
    """One layer of both stacks: v and h, (B, D, H, W) each -> v and h, (B, p, H, W) each (fig. 2 of the paper)."""

    def __init__(self, channels: int, width: int, kernel: int, dilation: int, *, groups: int, first: bool) -> None:
        super().__init__()
        self.first, self.reach = first, kernel // 2 * dilation
        self.vertical = nn.Conv2d(channels, 2 * width, (kernel // 2 + 1, kernel), dilation=dilation)
        self.link = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.horizontal = LeftConv2d(channels, width, kernel, dilation, groups=groups, strict=first)
        self.expand = MaskedConv2d("B", width, width, 1, groups=groups)

    def initialise(self, depth: int) -> None:
        """Unit variance along the vertical stack, which has no residual; small steps along the horizontal one."""
        for conv in (self.vertical, self.link, self.horizontal, self.expand):
            fan_in = conv.weight[0].numel()
            nn.init.normal_(conv.weight, std=fan_in**-0.5)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        for conv in (self.link, self.horizontal):  # two terms of one sum
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
        """The stacks, and from a context (B, 2p, h, w) for each. The last layer leaves v as it is: nobody reads it."""
        a = self.above(v, biases[0])
        b = self.link(a).add_(self.horizontal(h))  # no convolution needs its output again
        if biases[1] is not None:
            b = b.add_(biases[1])
        added = self.expand(gate(b))
        return v if last else gate(a), added if self.first else added.add_(h)


class GatedPixelCNN(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `width`: p, channels of each stack; `depth`: layers; `kernel`: odd, 3 or more; `dilations`: distance of the taps,
    one per layer in turn, None for 1; `feature_width`: D, features per step that the head gets; `value_width`: numbers
    that stand for a value at the input, 1 for its intensity; `chained`: a step is a pixel, not a value.
    """

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
        self.blocks: Sequence[GatedLayer] = layers  # type: ignore[assignment]  # so that the parts keep their types
        for layer in self.blocks:
            layer.initialise(depth)
        self.last = MaskedConv2d("B", width, feature_width * groups, 1, groups=groups)
        self.biases = LayerBiases(context_width, 2 * depth * [2 * width])  # vertical, horizontal, layer by layer

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E, h, w) -> (B, T, D)."""
        biases = self.biases(context)
        # A single channel leaves the memory format open, and the stream would be copied to and fro at every layer.
        h = self.values(x).contiguous(memory_format=torch.channels_last)
        v = F.pad(h, (0, 0, 1, -1))  # one row late: strictly above
        for i, layer in enumerate(self.blocks):
            v, h = layer(v, h, biases[2 * i : 2 * i + 2], last=i + 1 == len(self.blocks))
        h = self.last(h.relu()).relu()
        return h.permute(0, 2, 3, 1).reshape(len(x), -1, self.out_width)  # colour groups are blocks

    def filters(self) -> Tensor:
        """What a brighter pixel adds to the first layer of the vertical stack, (N, C, k // 2 + 1, k)."""
        return self.values.contrast(self.blocks[0].vertical.weight)

    def receptive_field(self, row: int, column: int) -> Tensor:
        """Pixels (H, W) bool that the features of a pixel depend on, itself aside."""
        h = torch.zeros(self.spec.height, self.spec.width, dtype=torch.bool)
        v = h.clone()
        h[row, column] = True
        for layer in reversed(self.blocks):
            (rows, columns), (d, _) = layer.vertical.kernel_size, layer.vertical.dilation
            v = v | h
            v = _union(_moved(v, -d * i, d * j) for i in range(rows) for j in range(-(columns // 2), columns // 2 + 1))
            h = _union(_moved(h, 0, -d * i) for i in range(not layer.horizontal.centre, rows))
        seen = _moved(v, -1, 0) | h
        seen[row, column] = False
        return seen


def _union(sets: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(sets)).any(0)


def _moved(seen: Tensor, down: int, right: int) -> Tensor:
    """(H, W) shifted, with False coming in."""
    height, width = seen.shape
    found = torch.zeros_like(seen)
    y, x = seen.nonzero().unbind(1)
    y, x = y + down, x + right
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    found[y[inside], x[inside]] = True
    return found
