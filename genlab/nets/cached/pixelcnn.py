"""Cache of a PixelCNN.

Beyond what all caches do (`base.py`):

- What a row reads of the row above enters as one batched product over all blocks and pixels for each tap, written to
  where the 3x3 convolution of every pixel then adds the rest in place.
- What is left of a block at one value is six operations. Masks are sliced away: the block-triangular weights of colour
  c read exactly the groups <= c, so three colours cost what one masked pixel would.
- No operation is spent on a bias. Those of `expand` never enter the stream: where it lacks their sum b,
  relu(stream + b) = max(stream, -b) + b, and what this b adds to the next product is known beforehand. It joins the
  bias there, which rides along as a column of ones.

B images, c values of a step, D features, L blocks, S stream width, N = S // 2 bottleneck width, W columns; small
letters s and n for the part of one colour, S' and N' for the colours so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.cached.base import Cache, by_column, pointwise_weight, row_weight
from genlab.nets.cached.first_layer import FirstLayer
from genlab.nets.causal.pixelcnn import PixelCNN
from genlab.nets.layers.masked import MaskedConv2d


@dataclass(slots=True)
class BlockStep:
    """Operands of one block at one value, views of the buffers and weights, in the order of use."""

    floor: Tensor  # minus the biases that the stream lacks (s,)
    relu: Tensor  # max(stream, floor), this colour (B, s)
    relus: Tensor  # ones and max(stream, floor), colours so far (B, 1 + S')
    reduce: Tensor  # (1 + S', n)
    narrow: Tensor  # bottleneck, this pixel and colour (B, n): what later pixels read
    middle: Tensor  # from the row above and the bias; then after the 3x3, this colour (B, n)
    left: Tensor  # bottleneck of the left pixel, and of this one, colours so far (B, N + N')
    conv: Tensor  # (N + N', n)
    middles: Tensor  # after the 3x3, colours so far (B, N')
    expand: Tensor  # (N', s)


@dataclass(slots=True)
class ValueStep:
    """Operands of one value of a row: first layer, blocks, last layer."""

    stream: Tensor  # from the rows above and the bias; then the residual stream, this colour (B, s)
    read: Tensor  # what the first layer reads of the row (B, k)
    first: Tensor  # (k, s)
    blocks: list[BlockStep]
    floor: Tensor  # the next three: as in a block
    relu: Tensor
    relus: Tensor
    last: Tensor  # (1 + S', D)


class PixelCNNCache(Cache):
    """Streams and bottlenecks of the current row, bottlenecks of the row above."""

    rows_alike = True
    net: PixelCNN

    def allocate(self) -> None:
        blocks, width, half = self.net.blocks, self.net.width, self.net.width // 2
        depth, columns, batch = len(blocks), self.columns, self.batch
        self.first = FirstLayer(self, self.net.first)
        self.stream = self.buffer(columns, batch, width, images=1)
        self.relus = self.buffer(depth + 1, batch, 1 + width, images=1)  # ones and max(stream, floor), for each block
        self.relus[..., 0] = 1
        self.narrow = self.buffer(depth, batch, columns + 2, half, images=1)  # bottlenecks; zeros left and right
        self.finished = self.zeros(depth, columns + 2, batch, half)  # those of the row above, pixel by pixel
        self.middle = self.buffer(depth, columns, batch, half, images=2)  # around the 3x3 convolution

        convs = [block.conv for block in blocks]
        self.above_weight = torch.stack([c.masked_weight[:, :, 0].permute(2, 1, 0) for c in convs], 1).contiguous()
        self.above_bias = torch.stack([c.bias for c in convs])[:, None, None]
        biases = torch.stack([block.expand.bias for block in blocks]).cumsum(0)
        self.lacking = torch.cat([torch.zeros_like(biases[:1]), biases])  # before each block and the last (L + 1, S)
        self.inputs = self.first.inputs

    def work(self) -> tuple[int, int]:
        half, blocks = self.net.width // 2, len(self.net.blocks)
        return self.batch * self.net.width * half, 3 * blocks * self.columns * self.batch * half**2

    def begin_row(self) -> None:
        """What the first layer and the 3x3 convolutions read of the rows above."""
        self.stream.copy_(self.first.begin_row())
        self.finished.copy_(self.narrow.transpose(1, 2))
        self.middle.copy_(self.above_bias)
        for tap, weight in enumerate(self.above_weight):
            self.middle.flatten(1, 2).baddbmm_(self.finished[:, tap : tap + self.columns].flatten(1, 2), weight)
        if biases := self.contexts[0].at(self.row):
            self.stream += biases[0]
            self.middle += torch.stack(biases[1:])

    def prefill(self, x: Tensor) -> None:
        """A forward pass of what the next row reads, fewer rows in each block."""
        net, rows = self.net, x.shape[2]
        values = net.values(x)
        self.first.prefill(values)
        first, *biases = self.contexts[0].until(rows)
        needed = len(net.blocks)  # newest rows of the stream: a block passes on one less than it reads
        h = net.first(values[:, :, -needed - self.first.pad :])[:, :, -needed:]
        if first is not None:
            h = h + first[:, :, -needed:]
        for block, bias, kept in zip(net.blocks, biases, self.narrow, strict=True):
            narrow = block.narrow(h)
            kept[:, 1:-1] = narrow[:, :, -1].transpose(1, 2)
            needed -= 1
            if needed:
                narrow = F.pad(narrow, (1, 1, 1, 0))[:, :, -needed - 1 :]
                middle = F.conv2d(narrow, block.conv.masked_weight[:, :, :2], block.conv.bias)
                if bias is not None:
                    middle = middle + bias[:, :, -needed:]
                h = h[:, :, -needed:] + block.expand(middle.relu_())

    def make_steps(self, colour: int) -> list[ValueStep]:
        net, n = self.net, self.net.width // 2
        wide, half, out = self.slices(colour, net.width, n, net.out_width * self.colours)
        blocks, lacking = net.blocks, self.lacking[:, : wide.stop]
        reduce = [_with_bias(b.reduce, half, lack) for b, lack in zip(blocks, lacking[:-1], strict=True)]
        conv = [row_weight(b.conv.masked_weight[half, :, 1, :2], half.stop) for b in blocks]
        expand = [pointwise_weight(b.expand, wide, half.stop) for b in blocks]
        first, last = self.first.row_weight(wide, colour), _with_bias(net.last, out, lacking[-1])

        *floor, last_floor = (-self.lacking[:, wide]).contiguous().unbind()
        *relu, last_relu = self.relus[..., 1:][..., wide].unbind()
        *relus, last_relus = self.relus[..., : 1 + wide.stop].unbind()
        windows = self.narrow.flatten(2).unfold(2, 2 * n, n).transpose(1, 2)  # a pixel, its right one (L, W + 1, B, 2N)
        narrow = by_column(self.narrow.transpose(1, 2)[:, 1:-1, :, half])
        left = by_column(windows[:, :-1, :, : n + half.stop])
        middle, middles = by_column(self.middle[..., half]), by_column(self.middle[..., : half.stop])
        steps = []
        for j, (stream, read) in enumerate(zip(self.stream[..., wide].unbind(), self.first.reads(colour), strict=True)):
            operands = floor, relu, relus, reduce, narrow[j], middle[j], left[j], conv, middles[j], expand
            steps.append(
                ValueStep(
                    stream=stream,
                    read=read,
                    first=first,
                    blocks=[BlockStep(*of_block) for of_block in zip(*operands, strict=True)],
                    floor=last_floor,
                    relu=last_relu,
                    relus=last_relus,
                    last=last,
                )
            )
        return steps

    def compute(self, step: ValueStep) -> Tensor:
        maximum, mm = torch.maximum, torch.mm  # looked up once: a step is ninety operations
        stream = step.stream.addmm_(step.read, step.first)
        for block in step.blocks:
            maximum(stream, block.floor, out=block.relu)
            mm(block.relus, block.reduce, out=block.narrow).relu_()
            block.middle.addmm_(block.left, block.conv).relu_()
            stream.addmm_(block.middles, block.expand)
        maximum(stream, step.floor, out=step.relu)
        return mm(step.relus, step.last).relu_()


def _with_bias(conv: MaskedConv2d, out: slice, lacking: Tensor) -> Tensor:
    """Bias and 1x1 weights of the output channels `out` for inputs (B, S') that lack `lacking` (S',): (1 + S', n)."""
    weight = conv.masked_weight[out, : len(lacking), 0, 0].T
    return torch.cat([(conv.bias[out] + lacking @ weight)[None], weight])
