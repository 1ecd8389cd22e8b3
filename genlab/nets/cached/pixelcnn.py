"""Cached sampling of a PixelCNN: each value costs its own arithmetic, nothing is computed twice.

The idea of Ramachandran et al. 2017 (arXiv:1704.06001): keep the activations that later pixels read. Ours goes further:

- All that comes from the rows above enters once a row, as one batched product over all blocks, written to where the
  3x3 convolution of every pixel then adds the rest in place.
- What is left of a block at one value is six in-place operations on preallocated buffers, half of them a product of
  (B, k) with (k, k'). Masks are sliced away: the block-triangular weights of colour c read exactly the groups <= c, so
  three colours cost what one masked pixel would.
- No operation is spent on a bias. Those of `expand` never enter the stream: where it lacks their sum b,
  relu(stream + b) = max(stream, -b) + b, and what this b adds to the next product is known beforehand. It joins the
  bias there, which rides along as a column of ones.
- Every view into the buffers is made once, at the start: at small widths Python is the cost.

Nothing in a row depends on which row it is, so the operations of one row can be captured as a CUDA graph and replayed.

B images, C channels, G colours in turn a pixel (1 if the head chains them), c = C / G values a step,
L blocks, S stream width, N = S // 2 bottleneck width, p = kernel // 2 of the first layer, W columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.layers.masked import MaskedConv2d, group_slices

if TYPE_CHECKING:
    from genlab.nets.causal.pixelcnn import PixelCNN


class BlockStep(NamedTuple):
    """Operands of one block at one value: views into the buffers and weights, in the order of use."""

    floor: Tensor  # minus the biases that the stream lacks (s,)
    relu: Tensor  # max(stream, floor), this colour (B, s)
    streams: Tensor  # ones and max(stream, floor), colours so far (B, 1 + S')
    reduce: Tensor  # (1 + S', n)
    narrow: Tensor  # bottleneck, this pixel and colour (B, n): what later pixels read
    middle: Tensor  # from the row above and the bias; then after the 3x3, this colour (B, n)
    left: Tensor  # bottleneck of the left pixel, and of this one, colours so far (B, N + N')
    conv: Tensor  # (N + N', n)
    middles: Tensor  # after the 3x3, colours so far (B, N')
    expand: Tensor  # (N', s)


class ValueStep(NamedTuple):
    """Operands of one value of a row: first layer, blocks, last layer."""

    previous: Tensor  # where the previous values belong in the input row (B, c)
    stream: Tensor  # from the rows above and the bias; then the residual stream, this colour (B, s)
    left: Tensor  # input values to the left, and the colours so far (B, p C + C')
    first: Tensor  # (p C + C', s)
    blocks: list[BlockStep]
    floor: Tensor  # the next three: as in a block
    relu: Tensor
    streams: Tensor
    last: Tensor  # (1 + S', D)


class PixelCNNState:
    """Buffers, weights as the steps read them, and the steps of a row. `t` is the step to come.

    With `prefix` (images (B, C, H, W), rows), one forward pass fills in the known rows. The state changes in place.
    `serial_from`: the step of a row from which one CPU thread does as well as several, 0 or 1 (then the work that is
    done once a row is large enough to share), or beyond the row.
    """

    def __init__(
        self,
        net: PixelCNN,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.t, self.pad = 0, net.first.kernel_size[0] // 2
        self.columns, self.channels, self.put = net.spec.width, net.values.channels, net.values.put
        self.colours = net.spec.channels // net.step_channels
        depth, width, half = len(net.blocks), net.width, net.width // 2
        # Measured on 2 idle cores: a product of 4 million multiply-adds gains nothing, a row of 80 million a twelfth.
        row, step = 3 * depth * self.columns * batch * half**2, batch * width * half
        shared = device.type != "cpu" or step > 2**22
        self.serial_from = self.columns * self.colours if shared else int(row > 2**27)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=net.first.weight.dtype, device=device)

        self.row = zeros(batch, (self.pad + self.columns) * self.channels)  # input, the colours of a pixel together
        self.rows = zeros(batch, self.channels, self.pad, self.columns)  # input of the rows above
        self.narrow = zeros(depth, batch, self.columns + 2, half)  # bottlenecks of this row; zeros left and right
        self.finished = zeros(depth, self.columns + 2, batch, half)  # those of the row above, pixel by pixel
        self.stream = zeros(self.columns, batch, width)
        self.streams = zeros(depth + 1, batch, 1 + width)
        self.streams[..., 0] = 1
        self.middle = zeros(depth, self.columns, batch, half)

        convs = [block.conv for block in net.blocks]
        self.first_weight, self.first_bias = net.first.masked_weight[:, :, : self.pad], net.first.bias.detach()
        self.above_weight = torch.stack([c.masked_weight[:, :, 0].permute(2, 1, 0) for c in convs], 1).contiguous()
        self.above_bias = torch.stack([c.bias for c in convs])[:, None, None]
        self.biases = net.biases(context)  # of the first layer and the blocks, (B, D, h, w) or None
        self.of_rows = _by_row(self.biases)
        colours = [_steps(net, self, c) for c in range(self.colours)]
        self.steps = [step for pixel in zip(*colours, strict=True) for step in pixel]
        if prefix is not None and prefix[1] > 0:
            self._prefill(net, *prefix)

    def begin_row(self) -> None:
        """All that the new row reads of the rows above it, for every pixel of the row and every block at once."""
        batch = len(self.row)
        if self.pad:
            if self.t:
                newest = self.row.view(batch, -1, self.channels)[:, self.pad :].transpose(1, 2)
                self.rows.copy_(torch.cat([self.rows[:, :, 1:], newest[:, :, None]], 2))
            first = F.conv2d(F.pad(self.rows, (self.pad, self.pad)), self.first_weight, self.first_bias)
            self.stream.copy_(first[:, :, 0].permute(2, 0, 1))
        else:
            self.stream.copy_(self.first_bias)
        self.finished.copy_(self.narrow.transpose(1, 2))
        self.middle.copy_(self.above_bias)
        for d, weight in enumerate(self.above_weight):
            self.middle.flatten(1, 2).baddbmm_(self.finished[:, d : d + self.columns].flatten(1, 2), weight)
        if self.of_rows:
            here = min(self.t // len(self.steps), len(self.of_rows[0]) - 1)  # a label's only row serves all
            self.stream += self.of_rows[0][here]
            self.middle += self.of_rows[1][here]

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        for dim, buffers in (
            (0, (self.row, self.rows)),
            (1, (self.stream, self.narrow, self.streams)),
            (2, (self.middle,)),
        ):
            for buffer in buffers:
                buffer.copy_(buffer.index_select(dim, index))
        self.biases = [None if bias is None else bias[index] for bias in self.biases]
        self.of_rows = _by_row(self.biases)

    def _prefill(self, net: PixelCNN, x: Tensor, rows: int) -> None:
        """Take in the first rows of x (B, C, H, W): a forward pass of what the next row reads, fewer rows a block."""
        needed = len(net.blocks)  # newest rows of the stream: a block passes on one less than it reads
        values = net.values(x[:, :, :rows])
        self.row.view(len(x), -1, self.channels)[:, self.pad :] = values[:, :, -1].transpose(1, 2)
        seen = values[:, :, max(rows - 1 - self.pad, 0) : rows - 1]  # the newest row joins when the next one begins
        if seen.shape[2] and self.pad:
            self.rows[:, :, -seen.shape[2] :] = seen
        first, *biases = [bias if bias is None or bias.shape[2] == 1 else bias[:, :, :rows] for bias in self.biases]
        h = net.first(values[:, :, -needed - self.pad :])[:, :, -needed:]
        if first is not None:
            h = h + first[:, :, -needed:]
        for block, bias, finished in zip(net.blocks, biases, self.narrow, strict=True):
            narrow = block.narrow(h)  # type: ignore[operator]
            finished[:, 1:-1] = narrow[:, :, -1].transpose(1, 2)
            needed -= 1
            if needed:
                narrow = F.pad(narrow, (1, 1, 1, 0))[:, :, -needed - 1 :]
                middle = F.conv2d(narrow, block.conv.masked_weight[:, :, :2], block.conv.bias)  # type: ignore[union-attr]
                if bias is not None:
                    middle = middle + bias[:, :, -needed:]
                h = h[:, :, -needed:] + block.expand(middle.relu_())  # type: ignore[operator]
        self.t = rows * len(self.steps)


def advance(previous: Tensor | None, state: PixelCNNState) -> Tensor:
    """One step: the previous values (B, c), None if the state has them -> features (B, D) of the next step."""
    column = state.t % len(state.steps)
    step = state.steps[column]
    if previous is not None:
        state.put(previous, step.previous)
    if column == 0:
        state.begin_row()
    state.t += 1
    stream = step.stream.addmm_(step.left, step.first)
    maximum, mm = torch.maximum, torch.mm  # looked up once: a step is ninety operations
    for floor, relu, streams, reduce, narrow, middle, left, conv, middles, expand in step.blocks:
        maximum(stream, floor, out=relu)
        mm(streams, reduce, out=narrow).relu_()
        middle.addmm_(left, conv).relu_()
        stream.addmm_(middles, expand)
    maximum(stream, step.floor, out=step.relu)
    return mm(step.streams, step.last).relu_()


def _steps(net: PixelCNN, state: PixelCNNState, colour: int) -> list[ValueStep]:
    """The steps of one colour in a row, one for each of the W columns."""
    colours, channels, pad, n = state.colours, state.channels, state.pad, net.width // 2
    values = net.step_channels * net.values.width
    wide, half, out = (group_slices(k, colours)[colour] for k in (net.width, n, net.out_width * colours))
    biases = torch.stack([block.expand.bias for block in net.blocks]).cumsum(0)
    lacking = torch.cat([torch.zeros_like(biases[:1]), biases])  # before each block and the last layer (L + 1, S)
    reduce = [_pointwise(b.reduce, half, lack[: wide.stop]) for b, lack in zip(net.blocks, lacking[:-1], strict=True)]
    last = _pointwise(net.last, out, lacking[-1, : wide.stop])
    conv = [_row_weight(block.conv, half, half.stop) for block in net.blocks]
    expand = [block.expand.masked_weight[wide, : half.stop, 0, 0].T.contiguous() for block in net.blocks]
    first = _row_weight(net.first, wide, colour * values)

    *floor, last_floor = (-lacking[:, wide]).contiguous().unbind()
    *relu, last_relu = state.streams[..., 1:][..., wide].unbind()
    *streams, last_streams = state.streams[..., : 1 + wide.stop].unbind()
    windows = state.narrow.flatten(2).unfold(2, 2 * n, n).transpose(1, 2)  # a pixel, its right one (L, W + 1, B, 2N)
    narrow = _by_column(state.narrow.transpose(1, 2)[:, 1:-1, :, half])
    left = _by_column(windows[:, :-1, :, : n + half.stop])
    middle, middles = _by_column(state.middle[..., half]), _by_column(state.middle[..., : half.stop])

    steps = []
    for j, stream in enumerate(state.stream[..., wide].unbind()):
        here = (pad + j) * channels + colour * values
        blocks = zip(floor, relu, streams, reduce, narrow[j], middle[j], left[j], conv, middles[j], expand, strict=True)
        steps.append(
            ValueStep(
                previous=state.row[:, here - values : here] if here > pad * channels else state.row[:, -values:],
                stream=stream,
                left=state.row[:, j * channels : here],
                first=first,
                blocks=[BlockStep(*operands) for operands in blocks],
                floor=last_floor,
                relu=last_relu,
                streams=last_streams,
                last=last,
            )
        )
    return steps


def _by_row(biases: list[Tensor | None]) -> tuple[Tensor, Tensor] | None:
    """Biases of a context (B, D, h, w) -> for the first layer (h, w, B, S) and the blocks (h, L, w, B, N)."""
    maps = [bias.permute(2, 3, 0, 1).contiguous() for bias in biases if bias is not None]
    return (maps[0], torch.stack(maps[1:], 1)) if maps else None


def _by_column(buffer: Tensor) -> list[tuple[Tensor, ...]]:
    """(L, W, B, n) -> for every column the views (B, n) of every block."""
    return [column.unbind() for column in buffer.unbind(1)]


def _pointwise(conv: MaskedConv2d, out: slice, lacking: Tensor) -> Tensor:
    """Bias and 1x1 weights of the output channels `out` for inputs (B, S') that lack `lacking` (S',): (1 + S', n)."""
    weight = conv.masked_weight[out, : len(lacking), 0, 0].T
    return torch.cat([(conv.bias[out] + lacking @ weight)[None], weight])  # type: ignore[index]


def _row_weight(conv: MaskedConv2d, out: slice, stop: int) -> Tensor:
    """Weights on the current row of the output channels `out`: pixels to the left, then `stop` channels of this one."""
    pad = conv.kernel_size[0] // 2
    weight = conv.masked_weight[out, :, pad]  # (n, D, k)
    left = weight[:, :, :pad].permute(2, 1, 0).flatten(0, 1)
    return torch.cat([left, weight[:, :stop, pad].T])
