"""What the two recurrent nets of the PixelRNN paper share (van den Oord, Kalchbrenner, Kavukcuoglu 2016,
arXiv:1601.06759, sec. 3 and table 1): a 7x7 convolution with mask A, `depth` residual LSTM layers, ReLU, 1x1, ReLU.

A layer reads a stream of width 2h. Its LSTM has h units, and a 1x1 convolution with mask B maps them back to 2h
channels. The sum of both is the next stream (fig. 5). The map from inputs to gates (input-to-state) is masked and
computed for the whole image at once. The map from states to gates (state-to-state) reads only pixels that are entirely
past, so it needs no mask and no colour groups.

Ours differs from the paper: input-to-state kernels are cropped to the taps that are not masked; the forget gate's bias
starts at 1; the last projection, to levels, belongs to the head, and all colours of a pixel share it. If the head
chains the colours itself, a step is a whole pixel and the net needs no colour groups. A context is added to the first
convolution and to all four gates of every layer.

B images, C channels, H x W pixels, D features of a step, S = `width` of the stream, U = S // 2 units (the paper's h).
Steps are single values, T = C * H * W, in raster order with the colours of a pixel in turn; or pixels, T = H * W
(`chained`). The gates of a pixel are 4 U numbers in the paper's order o, f, i, g, each U of them in colour groups.
Inside, maps are (channels, H, W, B), so that a row of pixels, or one gate of it, is contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.masked import MaskedConv2d, group_of_channel
from genlab.nets.layers.values import Values


class GateInput(nn.Module):
    """Input-to-state with mask B: a pixel and `reach` pixels to its left, (S, …, W, B) -> its gates (4 U, …, W, B)."""

    mask: Tensor

    def __init__(self, channels: int, units: int, *, reach: int = 0, groups: int) -> None:
        super().__init__()
        self.reach, self.full = reach, groups == 1
        self.weight = nn.Parameter(uniform(4 * units, (reach + 1) * channels))
        self.matrix_rows = {"weight": 4 * [units]}  # the gates, for Muon
        self.bias = nn.Parameter(torch.zeros(4, units))
        self.bias.data[1] = 1  # of the forget gates, so that they start open
        mask = torch.ones_like(self.weight)
        own = group_of_channel(channels, groups) <= group_of_channel(units, groups)[:, None]
        mask[:, -channels:] = own.repeat(4, 1).float()  # all four gates have the same colour groups
        self.register_buffer("mask", mask, persistent=False)

    @property
    def masked_weight(self) -> Tensor:
        """(4 U, (reach + 1) S): the leftmost pixel first, the pixel itself last."""
        return self.weight if self.full else self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """(S, …, W, B) -> (4 U, …, W, B)."""
        if self.reach:
            columns, padded = x.shape[-2], F.pad(x, (0, 0, self.reach, 0))
            x = torch.cat([padded[..., t : t + columns, :] for t in range(self.reach + 1)])
        return linear(x, self.masked_weight, self.bias.flatten())


def uniform(*shape: int) -> Tensor:
    """Random weights (…, inputs), distributed as in a new `nn.Linear`."""
    return torch.empty(shape).uniform_(-(shape[-1] ** -0.5), shape[-1] ** -0.5)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map of the channels, which are the first dimension: (D, …) -> (D', …)."""
    return torch.addmm(bias[:, None], weight, x.flatten(1)).unflatten(1, x.shape[1:])


def pointwise(conv: MaskedConv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of the channels, which are the first dimension: (D, …) -> (D', …)."""
    return linear(x, conv.masked_weight[:, :, 0, 0], conv.bias)


class Cell(torch.autograd.Function):
    """LSTM cell. Gates (…, 4 U, N) before their nonlinearities, memory (…, U, N) -> output and memory, (…, U, N) each.

    The gradient is written out, which takes half of autograd's operations. Most of the training time is spent here.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Output o tanh(c) of the new memory c = f memory + i g."""
        units = memory.shape[-2]
        active = torch.empty_like(gates)
        active[..., : 3 * units, :] = gates[..., : 3 * units, :].sigmoid()
        active[..., 3 * units :, :] = gates[..., 3 * units :, :].tanh()
        o, f, i, g = active.chunk(4, -2)
        new = torch.addcmul(f * memory, i, g)
        squashed = new.tanh()
        ctx.save_for_backward(active, memory, squashed)
        return o * squashed, new

    @staticmethod
    def backward(ctx: Any, of_h: Tensor, of_memory: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Gradients with respect to the gates and the old memory."""
        active, memory, squashed = ctx.saved_tensors
        o, f, i, g = active.chunk(4, -2)
        units, aten = memory.shape[-2], torch.ops.aten
        inner = aten.tanh_backward(of_h * o, squashed).add_(of_memory)
        of_gates = torch.cat([of_h * squashed, inner * memory, inner * g, inner * i], -2)
        sigmoid, tanh = slice(0, 3 * units), slice(3 * units, None)
        of_gates[..., sigmoid, :] = aten.sigmoid_backward(of_gates[..., sigmoid, :], active[..., sigmoid, :])
        of_gates[..., tanh, :] = aten.tanh_backward(of_gates[..., tanh, :], active[..., tanh, :])
        return of_gates, inner * f


def cell(gates: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """`Cell`, computed in the precision of the memory."""
    return Cell.apply(gates.to(memory.dtype), memory)


def initial_state(*shape: int, like: Tensor) -> Tensor:
    """The state of a cell before its first input: zeros, in float32 at least."""
    return torch.zeros(shape, dtype=torch.promote_types(like.dtype, torch.float), device=like.device)


class Layer(Protocol):
    """A residual LSTM layer."""

    up: MaskedConv2d  # from the LSTM's outputs to the stream, 1x1

    def __call__(self, h: Tensor, bias: Any) -> Tensor:
        """The stream (B, S, H, W) and what a context adds to its gates -> the next stream."""
        ...


class PixelRNN(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `directions`: number of LSTMs in a layer. A subclass makes `blocks`. Raises RequestError for impossible sizes.
    """

    blocks: Sequence[Layer]

    adamw_weights: tuple[str, ...] = ("first.weight",)  # read the image: not for Muon

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int,
        chained: bool,
        width: int,
        depth: int,
        kernel: int,
        feature_width: int,
        value_width: int,
        directions: int,
    ) -> None:
        super().__init__()
        self.step_channels = spec.channels if chained else 1
        self.groups = groups = spec.channels // self.step_channels
        if depth < 1 or width < 2 * groups or feature_width < 1 or kernel < 3:
            raise RequestError(
                f"a pixel RNN needs depth >= 1, width >= {2 * groups}, feature_width >= 1 and kernel >= 3, "
                f"got depth={depth}, width={width}, feature_width={feature_width}, kernel={kernel}"
            )
        self.spec, self.width, self.units, self.out_width = spec, width, width // 2, feature_width
        self.values = Values(spec, value_width)
        self.first = MaskedConv2d("A", self.values.channels, width, kernel, groups=groups)
        self.last = MaskedConv2d("B", width, feature_width * groups, 1, groups=groups)
        self.biases = LayerBiases(context_width, [width] + depth * [directions * 4 * self.units])

    def filters(self) -> Tensor:
        """How the first layer responds to the brightest value in place of the darkest, (N, C, k, k)."""
        return self.values.contrast(self.first.masked_weight)

    def gate_biases(self, values: Tensor, biases: list[Tensor | None]) -> list[Any]:
        """What is added to the gates of every layer, from the input numbers (B, C E, H, W) and a context's biases."""
        return biases

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E, h, w) -> (B, T, D)."""
        first, *biases = self.biases(context)
        values = self.values(x)
        h = self.first(values)
        if first is not None:
            h = h + first
        for block, bias in zip(self.blocks, self.gate_biases(values, biases), strict=True):
            h = block(h, bias)
        h = pointwise(self.last, h.permute(1, 2, 3, 0).relu()).relu()
        return h.permute(3, 1, 2, 0).reshape(len(x), -1, self.out_width)  # the channels of a colour lie together
