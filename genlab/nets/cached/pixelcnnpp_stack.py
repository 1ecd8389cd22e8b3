"""Cached sampling of PixelCNN++, part one: consecutive blocks of one stream at one resolution.

What a block reads are `concat_elu` of its input and of its middle; both are kept for the newest row. All they add to
the next row through the upper row of the kernels is one batched product a tap over all blocks and pixels, written to
where the rest is then added in place. Blocks of the way back lie in memory in reverse, because the last one takes in
the first skip: so a product with all skips is one batched product too.

`Rows` (stream u): a row at a time. `Pixels` (stream ul): a pixel at a time, seven operations a block. There the stream
is kept as x and -x side by side, so that `concat_elu` is one operation, and pixel and left neighbour lie together, so
that a 2x2 convolution's own row is one product.

L blocks, B images, w columns, F channels. States: inputs of the blocks and the output of the last, L + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._nn import elu, elu_, glu

from genlab.nets.layers.shifted import GatedResNet, ShiftedConv2d


class BlockStep(NamedTuple):
    """Operands of one block at one pixel: views into the buffers, and weights, in the order of use."""

    middle: Tensor  # from above, the sides and the bias (B, F); then before the nonlinearity
    inputs: Tensor  # concat_elu of the stream, left pixel and this one (B, 4 F)
    first: Tensor  # (4 F, F)
    middle_1: Tensor  # middle as (B, 1, F)
    halves: Tensor  # concat_elu of the middle, this pixel (B, 2, F)
    middles: Tensor  # … left pixel and this one (B, 4 F)
    gates: Tensor  # from above, the context and the bias (B, 2 F); then a and b
    second: Tensor  # (4 F, 2 F)
    next: Tensor  # concat_elu of the stream after the block (B, 2, F)


class Stack:
    """Weights and buffers of L blocks. `back`: on the way back, in memory from last to first."""

    taps: int  # columns of the kernels

    def __init__(
        self, blocks: Sequence[GatedResNet], *, back: bool, columns: int, batch: int, biases: Sequence[Tensor | None]
    ) -> None:
        order = range(len(blocks))[:: -1 if back else 1]
        blocks, biases = [blocks[i] for i in order], [biases[i] for i in order]
        self.back, self.columns, self.batch, self.count = back, columns, batch, len(blocks)
        self.inputs: slice = slice(1, None) if back else slice(-1)
        self.outputs: slice = slice(-1) if back else slice(1, None)
        self.states = range(len(blocks) + 1)[:: -1 if back else 1]  # where the input of the first block is, …
        self.order = order
        firsts, seconds = ([normed(getattr(b, name)) for b in blocks] for name in ("first", "second"))
        self.width = width = blocks[0].first.out_channels
        self.above_first, self.above_second = _taps(firsts, 0), _taps(seconds, 0)
        self.own_first, self.own_second = _taps(firsts, 1), _taps(seconds, 1)
        self.bias_first = torch.stack([b.first.bias for b in blocks])[:, None, None]
        self.bias_second = torch.stack([b.second.bias for b in blocks])[:, None, None]
        self.sides: list[Tensor] = []  # of every side input (L, 2 F, F)
        besides = [b.beside for b in blocks if b.beside is not None]
        if besides:
            self.bias_first = self.bias_first + torch.stack([b.bias for b in besides])[:, None, None]
            both = torch.stack([normed(b)[:, :, 0, 0].T for b in besides])  # (L, 2 n F, F): all of x, then of -x
            parts = both.view(len(blocks), 2, -1, width, width).unbind(2)
            self.sides = [part.reshape(len(blocks), 2 * width, width) for part in parts]
        maps = [bias.permute(2, 3, 0, 1) for bias in biases if bias is not None]
        self.of_rows = torch.stack(maps, 1) if maps else None  # (h, L, w, B, 2 F)
        self.middle = self.zeros(len(blocks), columns, batch, width)
        self.gates = self.zeros(len(blocks), columns, batch, 2 * width)

    def zeros(self, *shape: int) -> Tensor:
        """Of the type and place of the weights."""
        return self.bias_first.new_zeros(shape)

    def finished(self) -> tuple[Tensor, Tensor]:
        """concat_elu of inputs and middles of the newest row, column by column, (L, w + taps - 1, B, 2 F)."""
        raise NotImplementedError

    def begin_row(self, row: int) -> None:
        """All that the new row reads of the row above, for every pixel and block at once."""
        inputs, middles = self.finished()
        self.middle.copy_(self.bias_first)
        self.gates.copy_(self.bias_second)
        if self.of_rows is not None:
            self.gates += self.of_rows[min(row, len(self.of_rows) - 1)]  # a label's only row serves all
        for tap in range(self.taps):
            here = slice(tap, tap + self.columns)
            self.middle.flatten(1, 2).baddbmm_(inputs[:, here].flatten(1, 2), self.above_first[tap])
            self.gates.flatten(1, 2).baddbmm_(middles[:, here].flatten(1, 2), self.above_second[tap])

    def add_side(self, which: int, side: Tensor) -> None:
        """concat_elu of a side input of every block (L, w, B, 2 F), in the order of memory."""
        self.middle.flatten(1, 2).baddbmm_(side.flatten(1, 2), self.sides[which])

    def buffers(self) -> list[tuple[int, Tensor]]:
        """What belongs to images, and along which dimension."""
        return [(2, self.middle), (2, self.gates)]

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,)."""
        for dim, buffer in self.buffers():
            buffer.copy_(buffer.index_select(dim, index))
        if self.of_rows is not None:
            self.of_rows = self.of_rows.index_select(3, index)


class Rows(Stack):
    """Stream u, a row at a time. `x` (w, B, F): the stream; after `run` what the last block gives."""

    taps = 3

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        self.x = self.zeros(self.columns, self.batch, self.width)
        self.e = self.zeros(self.count + 1, self.columns + 2, self.batch, 2 * self.width)
        self.f = self.zeros(self.count, self.columns + 2, self.batch, 2 * self.width)
        self.sign = self.zeros(2, 1)
        self.sign[0], self.sign[1] = 1.0, -1.0

    def finished(self) -> tuple[Tensor, Tensor]:
        return self.e[self.inputs], self.f

    def row(self, states: slice) -> Tensor:
        """concat_elu of those states, (…, w, B, 2 F)."""
        return self.e[states, 1:-1]

    def run(self) -> None:
        """The row in `x` through all blocks."""
        self._concat_elu(self.x, self.e[self.states[0]])
        for i, after in zip(self.order, self.states[1:], strict=True):
            before = self.e[self.states[self.states.index(after) - 1]]
            middle, gates = self.middle[i], self.gates[i]
            self._add(middle, before, self.own_first, i)
            self._concat_elu(middle, self.f[i])
            self._add(gates, self.f[i], self.own_second, i)
            self.x += glu(gates, -1)
            self._concat_elu(self.x, self.e[after])

    def _add(self, to: Tensor, padded: Tensor, weights: list[Tensor], block: int) -> None:
        for tap, weight in enumerate(weights):
            to.flatten(0, 1).addmm_(padded[tap : tap + self.columns].flatten(0, 1), weight[block])

    def _concat_elu(self, x: Tensor, padded: Tensor) -> None:
        to = padded[1:-1]
        torch.mul(x[:, :, None], self.sign, out=to.view(*x.shape[:2], 2, self.width))
        elu_(to)

    def buffers(self) -> list[tuple[int, Tensor]]:
        return [*super().buffers(), (1, self.x), (2, self.e), (2, self.f)]


class Pixels(Stack):
    """Stream ul, a pixel at a time. `x` (B, 1 + even w, 2, F): the stream and its negative, zeros before."""

    taps = 2

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        width = self.width
        self.x = self.zeros(self.batch, 1 + self.columns + self.columns % 2, 2, width)
        self.e = self.zeros(self.count + 1, self.batch, self.columns + 1, 2 * width)
        self.f = self.zeros(self.count, self.batch, self.columns + 1, 2 * width)
        first = [torch.cat(pair) for pair in zip(*self.own_first, strict=True)]
        second = [torch.cat(pair) for pair in zip(*self.own_second, strict=True)]
        at = [self._column(j, first, second) for j in range(self.columns)]
        self.x_at, self.e_at, self.blocks_at = map(list, zip(*at, strict=True))

    def finished(self) -> tuple[Tensor, Tensor]:
        return self.e[self.inputs].transpose(1, 2).contiguous(), self.f.transpose(1, 2).contiguous()

    def _column(self, j: int, first: list[Tensor], second: list[Tensor]) -> tuple[Tensor, Tensor, list[BlockStep]]:
        """Operands at column j: the stream (B, 2, F), where its concat_elu goes, and those of the blocks."""
        size = self.batch, 2, self.width
        halves = [self.e[i, :, j + 1].view(size) for i in self.states]
        steps = [
            BlockStep(
                middle=self.middle[i, j],
                inputs=self.e[self.inputs][i, :, j : j + 2].flatten(1),
                first=first[i],
                middle_1=self.middle[i, j][:, None],
                halves=self.f[i, :, j + 1].view(size),
                middles=self.f[i, :, j : j + 2].flatten(1),
                gates=self.gates[i, j],
                second=second[i],
                next=after,
            )
            for i, after in zip(self.order, halves[1:], strict=True)
        ]
        return self.x[:, j + 1], halves[0], steps

    def buffers(self) -> list[tuple[int, Tensor]]:
        return [*super().buffers(), (0, self.x), (1, self.e), (1, self.f)]


def run_pixel(x: Tensor, start: Tensor, blocks: list[BlockStep], gated: Tensor, sign: Tensor) -> None:
    """The stream of a pixel (B, 2, F) through all blocks of a `Pixels`, in place; `gated` (B, 1, F) is scratch."""
    mul, gate = torch.mul, gated[:, 0]  # looked up once
    elu(x, out=start)  # type: ignore[call-arg]
    for middle, inputs, first, middle_1, halves, middles, gates, second, after in blocks:
        middle.addmm_(inputs, first)
        mul(middle_1, sign, out=halves)
        elu_(halves)
        glu(gates.addmm_(middles, second), 1, out=gate)  # type: ignore[call-arg]
        x.addcmul_(gated, sign)
        elu(x, out=after)  # type: ignore[call-arg]


def normed(conv: ShiftedConv2d) -> Tensor:
    """Its weights, without a graph."""
    return conv.normed_weight.detach()


def _taps(weights: list[Tensor], row: int) -> list[Tensor]:
    """Of a row of the kernels (D', D, kh, kw), for every tap (L, D, D')."""
    return [torch.stack([w[:, :, row, tap].T for w in weights]) for tap in range(weights[0].shape[3])]
