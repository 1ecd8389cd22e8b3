"""The cache of PixelSNAIL: every pixel costs its own arithmetic, and nothing is computed twice.

- The 2x2 convolutions of a block are a stack, as in PixelCNN++ (see `gated_stack`).
- Keys and values of a pixel need its colours, so they wait for the next step. They do not depend on later blocks, so
  those of all blocks are computed at once.
- Keys are stored with pixels last and values with channels last: this is how the two products of a single query read
  memory fastest. A query meets all pixels up to the end of the row, through views that are made once a row. Keys have
  one channel more, which every query reads with weight 1: it is 0 where a pixel is known and -1e30 elsewhere, so that
  the mask costs no operation. Values of unknown pixels are zeros. The first pixel weighs nothing else and gets zeros,
  as in the net.
- A stream lies between the colours and the place of its pixel, in the order in which the net joins them.

B images, C channels that are read of a pixel, L blocks, F stream width, M = C + F + 2 and Q = F + 2 channels joined for
keys and for queries, h heads, k channels of a key (the additional one included), V channels of all values, W columns,
T pixels. A context with places gives every column biases of its own (w = W); otherwise one serves all (w = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.cached.base import Cache
from genlab.nets.cached.gated_stack import Call, Stack, concat_elu_calls, gate_calls, matrix, newest_row, recorded, run
from genlab.nets.causal.pixelsnail import Block, PixelSNAIL
from genlab.nets.layers.shifted import GatedResNet, ShiftedConv2d

UNKNOWN = -1e30  # added to the score of a pixel that is not known yet: its weight is exactly 0
Affine = tuple[Tensor, Tensor]  # bias and weights


class GateBiases:
    """Biases of the gates of L blocks with 1x1 convolutions, and what a context adds to them in the current row."""

    def __init__(self, cache: Cache, blocks: Sequence[GatedResNet], columns: int) -> None:
        self.own = torch.stack([block.second.bias for block in blocks])[:, None]
        self.row = cache.buffer(columns, len(blocks), cache.batch, self.own.shape[2], images=2)  # (w, L, B, 2 n)
        self.row.copy_(self.own)
        self.now = self.row[0] if columns == 1 else cache.zeros(*self.row.shape[1:])  # of one pixel (L, B, 2 n)

    def begin_row(self, maps: list[Tensor]) -> None:
        """Take what the context adds to each block in this row, (w, B, 2 n)."""
        self.row.copy_(self.own + torch.stack(maps, 1))

    def calls(self, column: int) -> list[Call]:
        """Copy those of the pixel in a column to `now`, if they differ by column."""
        return [partial(self.now.copy_, self.row[column])] if len(self.row) > 1 else []


class PixelSNAILCache(Cache):
    """Keys and values of all pixels so far, and what the convolutions read of the newest row."""

    net: PixelSNAIL

    def work(self) -> tuple[int, int]:
        product = self.batch * self.net.width**2
        return 8 * product, 12 * sum(len(block.convs) for block in self.net.blocks) * self.columns * product

    def allocate(self) -> None:
        net, batch, columns, channels = self.net, self.batch, self.columns, self.channels
        one, depth, pixels = net.blocks[0], len(net.blocks), net.spec.height * self.columns
        self.heads, key_width = one.heads, one.keys // one.heads + 1
        self.line = self.buffer(batch, 1 + columns, channels, images=0)  # this row, after a pixel of zeros
        self.inputs = list(self.line[:, 1:].unbind(1))
        self.first = self.buffer(columns, batch, net.width, images=1)  # the first layer without the left pixel
        self.joined = self.buffer(depth + 1, batch, channels + net.width + 2, images=1)  # of one pixel
        self.streams, self.place = self.joined[..., channels:-2], self.joined[..., -2:]
        self.places = net.place.flatten(1).T.contiguous().unbind()  # T times (2,)
        self.convs = Stack(self, [conv for block in net.blocks for conv in block.convs], columns)
        self.keys = self.buffer(depth, batch, self.heads, key_width, pixels, images=1)
        self.keys[:, :, :, -1] = UNKNOWN
        self.values = self.buffer(depth, batch, self.heads, pixels, one.values // self.heads, images=1)
        self.newest = self.zeros(depth, batch, self.heads * key_width + one.values)  # keys and values of one pixel
        self.newest_keys, self.newest_values = (
            part.unflatten(2, (self.heads, -1)) for part in self.newest.tensor_split([self.heads * key_width], 2)
        )
        self.query = self.zeros(batch, self.heads * key_width)
        self.scores, self.weights = self.zeros(2, batch * self.heads * pixels)
        self.attended = self.zeros(batch * self.heads, 1, one.values // self.heads)

        context = self.contexts[0].context
        parts = ([getattr(block, name) for block in net.blocks] for name in ("memory", "query", "out"))
        self.biases = [GateBiases(self, part, 1 if context is None else context.shape[3]) for part in parts]
        self.memory_calls = self._memory_calls()
        self.block_calls = [self._attention_calls(i, block) for i, block in enumerate(net.blocks)]

    def make_steps(self, colour: int) -> list[list[list[Call]]]:
        """At every column, what every block does before its attention; the first layer is part of the first block."""
        weight = self.net.left.normed_weight[:, : self.channels, 1, 0].T.contiguous()
        each = len(self.net.blocks[0].convs)
        orders = [range(i * each, (i + 1) * each) for i in range(len(self.net.blocks))]
        steps = []
        for j, first in enumerate(self.first):
            step = [self.convs.calls(x, j, order) for x, order in zip(self.streams, orders, strict=False)]
            begin = partial(torch.addmm, first, self.line[:, j], weight, out=self.streams[0])
            step[0] = [begin, *self.biases[1].calls(j), *self.biases[2].calls(j), *step[0]]
            steps.append(step)
        return steps

    def take_in(self, values: Tensor, place: int) -> None:
        super().take_in(values, place)
        run(self.memory_calls[place])
        self.keys.select(4, self.t - 1).copy_(self.newest_keys)
        self.values.select(3, self.t - 1).copy_(self.newest_values)

    def begin_row(self) -> None:
        net, row, columns = self.net, self.row, self.columns
        values = self.line[:, None, 1:].permute(0, 3, 1, 2)
        values = torch.cat([values, torch.zeros_like(values)][not row :], 2)  # colours of the new row come in later
        self.first.copy_(net.stem(values)[:, :, -1].permute(2, 0, 1))
        maps = self.contexts[0].at(row)
        self.convs.begin_row(maps and [m for i, m in enumerate(maps) if i % net.layers < net.layers - 3])
        if maps is not None:
            for kind, biases in enumerate(self.biases):
                biases.begin_row(maps[net.layers - 3 + kind :: net.layers])

        end = (row + 1) * columns
        keys, values = self.keys.flatten(1, 2)[..., :end], self.values.flatten(1, 2)[:, :, :end]
        scores, weights = (x[: len(self.attended) * end].view(-1, 1, end) for x in (self.scores, self.weights))
        query = self.query.view(len(self.attended), 1, -1)
        self.attention: list[list[Call]] = [
            [
                *before,
                partial(torch.bmm, query, block_keys, out=scores),
                partial(torch.softmax, scores, 2, out=weights),
                partial(torch.bmm, weights, block_values, out=self.attended),
                *after,
            ]
            for (before, after), block_keys, block_values in zip(self.block_calls, keys, values, strict=True)
        ]

    def compute(self, step: list[list[Call]]) -> Tensor:
        self.place.copy_(self.places[self.t - 1])
        for convs, attention in zip(step, self.attention, strict=True):
            run(convs)
            run(attention)
        return F.elu(self.streams[-1])

    def prefill(self, x: Tensor) -> None:
        net, context, t = self.net, self.contexts[0].context, x.shape[2] * self.columns
        convs = [conv for block in net.blocks for gated in block.convs for conv in (gated.first, gated.second)]
        to_memory = [block.to_memory for block in net.blocks]
        with recorded(convs, newest_row) as inputs, recorded(to_memory, lambda _, result: result) as results:
            net.forward(x, None if context is None else context[:, :, : x.shape[2]])
        self.convs.take_in(inputs)
        memory = torch.stack([results[conv] for conv in to_memory]).flatten(3)  # (L, B, keys and values, t)
        keys, values = (part.unflatten(2, (self.heads, -1)) for part in memory.tensor_split([net.blocks[0].keys], 2))
        self.keys[:, :, :, :-1, :t], self.keys[:, :, :, -1, :t] = keys, 0
        self.values[:, :, :, :t] = values.transpose(3, 4)
        self.line[:, 1:] = net.values(x[:, :, -1:])[:, :, 0].transpose(1, 2)

    def _gated_calls(self, read: Tensor, first: Affine, second: Affine, x: Tensor, out: Tensor) -> list[Call]:
        """A gated block with 1x1 convolutions, or L of them at once: x plus its branch, written to `out`, (…, B, n).

        `first` maps `read` (…, B, k) to n hidden numbers, `second` maps concat_elu of those to the gates, 2 n.
        """
        hidden, product = self.zeros(*out.shape), torch.addmm if out.dim() == 2 else torch.baddbmm
        hidden_read, gates = (self.zeros(*out.shape[:-1], 2 * out.shape[-1]) for _ in range(2))
        return [
            partial(product, first[0], read, first[1], out=hidden),
            *concat_elu_calls(hidden, self.convs.signs, hidden_read),
            partial(product, second[0], hidden_read, second[1], out=gates),
            *gate_calls(x, gates, out),
        ]

    def _memory_calls(self) -> list[list[Call]]:
        """For every column: take in the colours of its pixel, and compute its keys and values in all blocks."""
        joined, blocks, biases = self.joined[:-1], self.net.blocks, self.biases[0]
        first = _stacked([block.memory.first for block in blocks])
        _, second = _stacked([block.memory.second for block in blocks])
        bias, out = (_spread(x, self.heads, blocks[0].keys) for x in _stacked([b.to_memory for b in blocks]))
        read, memory = self.zeros(*joined.shape[:2], 2 * joined.shape[2]), torch.zeros_like(joined)
        calls: list[Call] = [
            *concat_elu_calls(joined, self.convs.signs, read),
            *self._gated_calls(read, first, (biases.now, second), joined, memory),
            partial(torch.baddbmm, bias, memory, out, out=self.newest),
        ]
        colours = joined[..., : self.channels]
        return [
            [partial(colours.copy_, values), *biases.calls(j % len(biases.row)), *calls]
            for j, values in enumerate(self.inputs)
        ]

    def _attention_calls(self, i: int, block: Block) -> tuple[list[Call], list[Call]]:
        """Block i after its convolutions: what computes the query, and what follows attention.

        The last gated block reads concat_elu of the stream and the place, as the query does (with weights 0 for the
        place), and concat_elu of the result of attention.
        """
        batch, width, queries = self.batch, self.net.width, self.net.width + 2
        read = self.zeros(batch, 2 * queries + 2 * block.values)
        query_read, attended_read = read.tensor_split([2 * queries], 1)
        x, scale = self.joined[i, :, self.channels :], (block.keys // block.heads) ** -0.5
        query = torch.zeros_like(x)
        first: Affine = block.query.first.bias, matrix(block.query.first)
        to_query = _spread(matrix(block.to_query) * scale, block.heads, block.keys)
        query_bias = _spread(block.to_query.bias * scale, block.heads, block.keys)
        query_bias.view(block.heads, -1)[:, -1] = 1
        second = self.biases[1].now[i], matrix(block.query.second)
        before: list[Call] = [
            *concat_elu_calls(x, self.convs.signs, query_read),
            *self._gated_calls(query_read, first, second, x, query),
            partial(torch.addmm, query_bias, query, to_query, out=self.query),
        ]
        weight, beside = read.new_zeros(read.shape[1], width), block.out.beside
        weight[:width], weight[queries : queries + width] = matrix(block.out.first).split(width)
        weight[2 * queries :] = matrix(beside)  # type: ignore[arg-type]
        first = block.out.first.bias + beside.bias, weight  # type: ignore[union-attr]
        second = self.biases[2].now[i], matrix(block.out.second)
        after = [
            *concat_elu_calls(self.attended.view(batch, -1), self.convs.signs, attended_read),
            *self._gated_calls(read, first, second, self.streams[i], self.streams[i + 1]),
        ]
        return before, after


def _spread(x: Tensor, heads: int, keys: int) -> Tensor:
    """Room for the channel that says what is known: (…, keys [+ V]) -> (…, keys + heads [+ V]), zero there."""
    known, rest = x[..., :keys].unflatten(-1, (heads, -1)), x[..., keys:]
    return torch.cat([F.pad(known, (0, 1)).flatten(-2), rest], -1).contiguous()


def _stacked(convs: Sequence[ShiftedConv2d]) -> Affine:
    """Biases (L, 1, n) and weights (L, k, n) of 1x1 convolutions."""
    return torch.stack([conv.bias for conv in convs])[:, None], torch.stack([matrix(conv) for conv in convs])
