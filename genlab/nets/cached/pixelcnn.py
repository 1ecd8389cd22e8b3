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

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.cached.base import Cache, by_column, pointwise_weight, row_weight
from genlab.nets.cached.first_layer import FirstLayer
from genlab.nets.causal.pixelcnn import PixelCNN
from genlab.nets.layers.masked import MaskedConv2d


class BlockViews:
    """Weights and buffers of block i as the steps of one colour read them in every column."""

    def __init__(self, cache: PixelCNNCache, i: int, wide: slice, half: slice) -> None:
        block = cache.net.blocks[i]
        self.floor = -cache.lacking[i, wide]  # minus the biases that the stream lacks (s,)
        self.relus = cache.relus[i, :, : 1 + wide.stop]  # ones and max(stream, floor), colours so far (B, 1 + S')
        self.relu = self.relus[:, 1 + wide.start :]  # this colour (B, s)
        self.reduce = _with_bias(block.reduce, half, cache.lacking[i, : wide.stop])  # (1 + S', n)
        self.conv = row_weight(block.conv.masked_weight[half, :, 1, :2], half.stop)  # (N + N', n)
        self.expand = pointwise_weight(block.expand, wide, half.stop)  # (N', s)


class ColourSteps:
    """The steps of one colour."""

    def __init__(self, cache: PixelCNNCache, colour: int) -> None:
        net = cache.net
        wide, half, out = cache.slices(colour, net.width, net.width // 2, net.out_width * cache.colours)
        self.stream = cache.stream[..., wide].unbind()  # from the rows above; then the stream, this colour (B, s)
        self.reads, self.first = cache.first.reads(colour), cache.first.row_weight(wide, colour)  # (B, k), (k, s)
        blocks, n = [BlockViews(cache, i, wide, half) for i in range(len(net.blocks))], net.width // 2
        views = (  # of all blocks, column by column: what a step uses then lies together in memory
            by_column(cache.narrow[:, :, 1:-1, half].transpose(1, 2)),  # bottleneck, this colour (B, n)
            # Bottleneck of the left pixel, and of this one the colours so far (B, N + N').
            by_column(cache.narrow[:, :, :-1].flatten(2).unfold(2, n + half.stop, n).transpose(1, 2)),
            by_column(cache.middle[..., half]),  # from the row above; then after the 3x3, this colour (B, n)
            by_column(cache.middle[..., : half.stop]),  # colours so far (B, N')
        )
        self.columns = [list(zip(blocks, *of_column, strict=True)) for of_column in zip(*views, strict=True)]
        self.floor, self.relus = -cache.lacking[-1, wide], cache.relus[-1, :, : 1 + wide.stop]  # as in a block
        self.relu = self.relus[:, 1 + wide.start :]
        self.last = _with_bias(net.last, out, cache.lacking[-1, : wide.stop])  # (1 + S', D)

    def run(self, column: int) -> Tensor:
        """The step at a column -> features (B, D)."""
        maximum, mm = torch.maximum, torch.mm  # looked up once: a step is ninety operations
        stream = self.stream[column].addmm_(self.reads[column], self.first)
        for block, narrow, left, middle, middles in self.columns[column]:
            maximum(stream, block.floor, out=block.relu)
            mm(block.relus, block.reduce, out=narrow).relu_()
            middle.addmm_(left, block.conv).relu_()
            stream.addmm_(middles, block.expand)
        maximum(stream, self.floor, out=self.relu)
        return mm(self.relus, self.last).relu_()


class PixelCNNCache(Cache):
    """Streams and bottlenecks of the current row, bottlenecks of the row above."""

    rows_alike = True
    colour_steps = ColourSteps
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


def _with_bias(conv: MaskedConv2d, out: slice, lacking: Tensor) -> Tensor:
    """Bias and 1x1 weights of the output channels `out` for inputs (B, S') that lack `lacking` (S',): (1 + S', n)."""
    weight = conv.masked_weight[out, : len(lacking), 0, 0].T
    return torch.cat([(conv.bias[out] + lacking @ weight)[None], weight])
