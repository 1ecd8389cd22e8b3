"""Cached sampling of a PixelCNN: each value costs its own arithmetic, nothing is computed twice.

The idea of Ramachandran et al. 2017 (arXiv:1704.06001): keep the activations that later pixels read. Ours goes further:

- All that comes from the rows above enters once a row, as one batched product over all blocks.
- What is left of a block at one value is six in-place operations on preallocated buffers, half of them a product of
  (B, k) with (k, k'). Biases ride along as a column of ones, masks are sliced away: the block-triangular weights
  of colour c read exactly the groups <= c, so three colours cost what one masked pixel would.
- Every view into the buffers is made once, at the start: at small widths Python is the cost.

Nothing in a row depends on which row it is, so the operations of one row can be captured as a CUDA graph and replayed.

B images, L blocks, S stream width, N = S // 2 bottleneck width, p = kernel // 2 of the first layer, W columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.masked import MaskedConv2d, group_slices

if TYPE_CHECKING:
    from genlab.nets.pixelcnn import PixelCNN


class BlockStep(NamedTuple):
    """Operands of one block at one value: views into the buffers and weights, in the order of use."""

    relu: Tensor  # relu(stream), this colour (B, s)
    streams: Tensor  # ones and relu(stream), colours so far (B, 1 + S')
    reduce: Tensor  # (1 + S', n)
    narrow: Tensor  # bottleneck, this pixel and colour (B, n): what later pixels read
    above: Tensor  # contribution of the row above, and the bias (B, n)
    left: Tensor  # bottleneck of the left pixel, and of this one, colours so far (B, N + N')
    conv: Tensor  # (N + N', n)
    middle: Tensor  # after the 3x3, this colour (B, n)
    middles: Tensor  # ones and after the 3x3, colours so far (B, 1 + N')
    expand: Tensor  # (1 + N', s)


class ValueStep(NamedTuple):
    """Operands of one value of a row: first layer, blocks, last layer."""

    previous: Tensor  # where the previous value belongs in the input row (B, 1)
    above: Tensor  # contribution of the rows above, and the bias (B, s)
    left: Tensor  # input values to the left, and the colours so far (B, p C + c)
    first: Tensor  # (p C + c, s)
    stream: Tensor  # the residual stream, this colour (B, s)
    blocks: list[BlockStep]
    relu: Tensor  # relu(stream), this colour (B, s)
    streams: Tensor  # ones and relu(stream), colours so far (B, 1 + S')
    last: Tensor  # (1 + S', D)


class PixelCNNState:
    """Buffers, weights as the steps read them, and the steps of a row. `t` is the step to come.

    With `prefix` (images (B, C, H, W), rows), one forward pass fills in the known rows. The state changes in place.
    """

    def __init__(
        self, net: PixelCNN, batch: int, device: torch.device, prefix: tuple[Tensor, int] | None = None
    ) -> None:
        self.t, self.pad = 0, net.first.kernel_size[0] // 2
        self.columns, self.colours = net.spec.width, net.spec.channels
        depth, width, half = len(net.blocks), net.width, net.width // 2

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=net.first.weight.dtype, device=device)

        self.row = zeros(batch, (self.pad + self.columns) * self.colours)  # input, the colours of a pixel together
        self.rows = zeros(batch, self.colours, self.pad, self.columns)  # input of the rows above
        self.first_above = zeros(self.columns, batch, width)
        self.narrow = zeros(depth, batch, self.columns + 2, half)  # bottlenecks of this row; zeros left and right
        self.above = zeros(depth, self.columns, batch, half)
        self.stream = zeros(batch, width)
        self.streams = zeros(depth + 1, batch, 1 + width)
        self.middles = zeros(depth, batch, 1 + half)
        self.streams[..., 0] = self.middles[..., 0] = 1

        convs = [block.conv for block in net.blocks]
        self.scale, self.black = 2 / (net.spec.levels - 1), zeros(1, 1) - 1  # as PixelCNN.embed
        self.first_weight, self.first_bias = net.first.masked_weight[:, :, : self.pad], net.first.bias.detach()
        self.above_weight = torch.stack([c.masked_weight[:, :, 0].permute(2, 1, 0) for c in convs], 1).contiguous()
        self.above_bias = torch.stack([c.bias for c in convs])[:, None, None]
        self.steps = _steps(net, self)
        if prefix is not None and prefix[1] > 0:
            self._prefill(net, *prefix)

    def begin_row(self) -> None:
        """All that the new row reads of the rows above it, for every pixel of the row and every block at once."""
        batch = len(self.row)
        if self.pad:
            if self.t:
                finished = self.row.view(batch, -1, self.colours)[:, self.pad :].transpose(1, 2)
                self.rows.copy_(torch.cat([self.rows[:, :, 1:], finished[:, :, None]], 2))
            first = F.conv2d(F.pad(self.rows, (self.pad, self.pad)), self.first_weight, self.first_bias)
            self.first_above.copy_(first[:, :, 0].permute(2, 0, 1))
        else:
            self.first_above.copy_(self.first_bias.expand_as(self.first_above))
        narrow = self.narrow.transpose(1, 2).contiguous()  # (L, W + 2, B, N): the row above, pixel by pixel
        self.above.copy_(self.above_bias.expand_as(self.above))
        for d, weight in enumerate(self.above_weight):
            self.above.flatten(1, 2).baddbmm_(narrow[:, d : d + self.columns].flatten(1, 2), weight)

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        for dim, buffers in (
            (0, (self.row, self.rows, self.stream)),
            (1, (self.first_above, self.narrow, self.streams, self.middles)),
            (2, (self.above,)),
        ):
            for buffer in buffers:
                buffer.copy_(buffer.index_select(dim, index))

    def _prefill(self, net: PixelCNN, x: Tensor, rows: int) -> None:
        values = net.embed(x[:, :, :rows])
        self.row.view(len(x), -1, self.colours)[:, self.pad :] = values[:, :, -1].transpose(1, 2)
        seen = values[:, :, max(rows - 1 - self.pad, 0) : rows - 1]  # the newest row joins when the next one begins
        if seen.shape[2] and self.pad:
            self.rows[:, :, -seen.shape[2] :] = seen
        h = net.first(values)
        for i, block in enumerate(net.blocks):
            self.narrow[i, :, 1:-1] = block.narrow(h)[:, :, -1].transpose(1, 2)  # type: ignore[operator]
            h = block(h)
        self.t = rows * len(self.steps)


def advance(previous: Tensor | None, state: PixelCNNState) -> Tensor:
    """One step: the previous value (B, 1), None if the state has it -> features (B, D) of the next value."""
    column = state.t % len(state.steps)
    step = state.steps[column]
    if previous is not None:
        torch.add(state.black, previous, alpha=state.scale, out=step.previous)
    if column == 0:
        state.begin_row()
    state.t += 1
    stream = torch.addmm(step.above, step.left, step.first, out=step.stream)
    clamp_min, mm, addmm = torch.clamp_min, torch.mm, torch.addmm  # looked up once: a step is ninety operations
    for relu, streams, reduce, narrow, above, left, conv, middle, middles, expand in step.blocks:
        clamp_min(stream, 0, out=relu)
        mm(streams, reduce, out=narrow).relu_()
        addmm(above, left, conv, out=middle).relu_()
        stream.addmm_(middles, expand)
    clamp_min(stream, 0, out=step.relu)
    return mm(step.streams, step.last).relu_()


def _steps(net: PixelCNN, state: PixelCNNState) -> list[ValueStep]:
    """The steps of a row: W pixels of C colours."""
    colours, pad, blocks = state.colours, state.pad, list(net.blocks)
    wide, half = group_slices(net.width, colours), group_slices(net.width // 2, colours)
    features = group_slices(net.out_width * colours, colours)
    n = net.width // 2
    narrow = state.narrow.flatten(2)
    row = [
        [
            _row_weight(net.first, wide[c], c),
            [_pointwise(b.reduce, half[c], wide[c].stop) for b in blocks],  # type: ignore[arg-type]
            [_row_weight(b.conv, half[c], half[c].stop) for b in blocks],  # type: ignore[arg-type]
            [_pointwise(b.expand, wide[c], half[c].stop) for b in blocks],  # type: ignore[arg-type]
            _pointwise(net.last, features[c], wide[c].stop),
        ]
        for c in range(colours)
    ]
    steps = []
    for j in range(state.columns):
        for c, (first, reduce, conv, expand, last) in enumerate(row):
            stream, middle = (slice(s[c].start + 1, s[c].stop + 1) for s in (wide, half))  # behind the ones
            here = (pad + j) * colours + c
            steps.append(
                ValueStep(
                    previous=state.row[:, here - 1, None] if here > pad * colours else state.row[:, -1:],
                    above=state.first_above[j][:, wide[c]],
                    left=state.row[:, j * colours : here],
                    first=first,
                    stream=state.stream[:, wide[c]],
                    blocks=[
                        BlockStep(
                            relu=state.streams[i][:, stream],
                            streams=state.streams[i][:, : stream.stop],
                            reduce=reduce[i],
                            narrow=state.narrow[i][:, j + 1, half[c]],
                            above=state.above[i, j][:, half[c]],
                            left=narrow[i][:, j * n : (j + 1) * n + half[c].stop],
                            conv=conv[i],
                            middle=state.middles[i][:, middle],
                            middles=state.middles[i][:, : middle.stop],
                            expand=expand[i],
                        )
                        for i in range(len(blocks))
                    ],
                    relu=state.streams[-1][:, stream],
                    streams=state.streams[-1][:, : stream.stop],
                    last=last,
                )
            )
    return steps


def _pointwise(conv: MaskedConv2d, out: slice, stop: int) -> Tensor:
    """Bias and 1x1 weights of the output channels `out`, which read the first `stop` inputs: (1 + stop, n)."""
    return torch.cat([conv.bias[out][None], conv.masked_weight[out, :stop, 0, 0].T]).contiguous()  # type: ignore[index]


def _row_weight(conv: MaskedConv2d, out: slice, stop: int) -> Tensor:
    """Weights on the current row of the output channels `out`: pixels to the left, then `stop` channels of this one."""
    pad = conv.kernel_size[0] // 2
    weight = conv.masked_weight[out, :, pad]  # (n, D, k)
    left = weight[:, :, :pad].permute(2, 1, 0).flatten(0, 1)
    return torch.cat([left, weight[:, :stop, pad].T]).contiguous()
