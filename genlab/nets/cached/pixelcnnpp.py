"""The cache of PixelCNN++: stream u is computed once a row, stream ul once a pixel, and nothing is computed twice.

Source of the idea: Ramachandran et al. 2017 (arXiv:1704.06001). What is 2^k times coarser is computed every 2^k rows
and columns. Ours adds that everything finished rows contribute enters as batched products (see `gated_stack`), as does
what u gives to ul.

A new row: first what comes from above, for all resolutions that are active in this row; then u, down to the coarsest
resolution and back; then what u gives to ul. A pixel: the first layer, the blocks on the way to the coarsest resolution
(where the column is a multiple of 2^k those of resolution k), and the blocks on the way back. A coarse result goes to
both fine pixels of this row at once, and to those of the next row when that begins.

B images, C channels, W columns, F channels of a stream, R resolutions; resolution k has w columns.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.cached.base import Cache, ContextRows
from genlab.nets.cached.gated_stack import Call, Stack, newest_row, recorded, run
from genlab.nets.causal.pixelcnnpp import PixelCNNpp, in_pairs
from genlab.nets.layers.shifted import ShiftedConv2d, ShiftedUp2d


class Level:
    """One resolution: the blocks of both streams on the way there and back, and what leads to and from finer pixels."""

    def __init__(self, cache: Cache, net: PixelCNNpp, level: int) -> None:
        self.columns = net.size(level)[1]
        there, back = net.pairs(level)
        self.u_there = Stack(cache, [pair.u for pair in there], self.columns)
        self.u_back = Stack(cache, [pair.u for pair in back], self.columns, back=True)
        self.ul_there = Stack(cache, [pair.ul for pair in there], self.columns)
        self.ul_back = Stack(cache, [pair.ul for pair in back], self.columns, back=True)
        self.stacks = self.u_there, self.u_back, self.ul_there, self.ul_back
        # The streams on the way there and on the way back: u of a row, ul of a row after a pixel of zeros. Their number
        # of pixels is rounded up to an even one.
        self.u, self.u_return = (cache.buffer(self.columns, cache.batch, net.width, images=1) for _ in range(2))
        self.u_calls, self.u_return_calls = self.u_there.calls(self.u), self.u_back.calls(self.u_return)
        size = cache.batch, 1 + self.columns + self.columns % 2, net.width
        self.ul, self.ul_return = (cache.buffer(*size, images=0) for _ in range(2))
        self.ul_pixels, self.ul_return_pixels = (x[:, 1 : 1 + self.columns] for x in (self.ul, self.ul_return))
        # Stream u after the blocks on the way there: the last row and this one.
        self.two_rows = cache.buffer(2, self.columns + 2, cache.batch, net.width, images=2)
        if level:
            self.shrink, self.grow = shrink, grow = net.shrink[level - 1], net.grow[level - 1]
            self.shrink_u = shrink.u.normed_weight.permute(2, 3, 1, 0).flatten(0, 2)  # (6 F, F)
            self.shrink_ul = shrink.ul.normed_weight.permute(2, 3, 1, 0).flatten(1, 2)  # (2, 2 F, F)
            self.grow_u = grow.u.normed_weight.permute(2, 0, 3, 1).flatten(2)  # (2, F, 3 F)
            self.grow_ul = grow.ul.normed_weight.permute(2, 0, 3, 1).flatten(2)  # (2, F, 2 F)
            self.grow_ul_bias = grow.ul.bias.repeat(2)

    def u_from_finer(self, finer: Level) -> None:
        """The strided convolution of the last two rows of the finer stream u."""
        last = 2 * self.columns - 1
        taps = [finer.two_rows[a, d : d + last : 2] for a in range(2) for d in range(3)]
        torch.addmm(self.shrink.u.bias, torch.cat(taps, 2).flatten(0, 1), self.shrink_u, out=self.u.flatten(0, 1))

    def u_to_finer(self, finer: Level, row: int) -> None:
        """The transposed convolution of stream u to the upper (0) or lower (1) fine row."""
        x = self.u_return
        y = (x.flatten(0, 1) @ self.grow_u[row]).view(*x.shape[:2], 3, -1)  # taps: column before, even, odd
        fine = y[:, :, 1:].transpose(1, 2) + self.grow.u.bias
        fine[:-1, 1] += y[1:, :, 0]
        finer.u_return.copy_(fine.flatten(0, 1)[: finer.columns])

    def ul_from_above(self, finer: Level) -> None:
        """What the finished row of the finer stream ul contributes to the new row here."""
        windows = finer.ul[:, : 2 * self.columns].reshape(len(self.ul), self.columns, -1)
        self.ul_pixels.copy_(F.linear(windows, self.shrink_ul[0].T, self.shrink.ul.bias))

    def ul_to_lower(self, finer: Level) -> None:
        """What this row of stream ul gives to the lower one of its two fine rows."""
        row = F.linear(self.ul_return_pixels, self.grow_ul[1].T, self.grow_ul_bias)
        finer.ul_return[:, 1:].view(row.shape).copy_(row)

    def finish_u(self) -> None:
        """Stream u of a new row on the way back, and what it gives to stream ul."""
        there, back = self.u_there, self.u_back
        back.add_side(0, there.by_pixel(there.streams)[: len(back.blocks), 1:-1])
        run(self.u_return_calls)
        self.ul_there.add_side(0, there.after[:, 1:-1])
        self.ul_back.add_side(0, back.after[:, 1:-1])

    def calls_there(self, column: int, left: Tensor, weight: Tensor) -> list[Call]:
        """Stream ul of a pixel on the way there. `left` (B, k) with a weight (k, F): what it still lacks."""
        x = self.ul[:, column + 1]
        return [partial(x.addmm_, left, weight), *self.ul_there.calls(x, column)]

    def calls_back(self, column: int, finer: Level | None) -> list[Call]:
        """Stream ul of a pixel on the way back, to two pixels of the finer resolution."""
        back, x = self.ul_back, self.ul_return[:, column + 1]
        skips = self.ul_there.streams[: len(back.blocks), :, column + 1]  # concat_elu of them (L, B, 2 F)
        calls: list[Call] = [partial(back.hidden[:, column].baddbmm_, skips, back.sides[1]), *back.calls(x, column)]
        if finer is None:
            return calls
        fine = finer.ul_return[:, 2 * column + 1 : 2 * column + 3].flatten(1)
        return [*calls, partial(torch.addmm, self.grow_ul_bias, x, self.grow_ul[0], out=fine)]


class PixelCNNppCache(Cache):
    """The streams of the newest row at every resolution. A resolution k is active in every 2^k-th row."""

    net: PixelCNNpp

    def read_context(self, context: Tensor | None) -> list[ContextRows]:
        contexts = self.net.contexts(context)
        return [ContextRows(biases, c) for biases, c in zip(self.net.biases, contexts, strict=True)]

    def work(self) -> tuple[int, int]:
        product = self.batch * self.net.width**2
        return 8 * product, 36 * (2 * self.net.depth + 1) * self.columns * product

    def allocate(self) -> None:
        self.levels = [Level(self, self.net, level) for level in range(self.net.resolutions)]
        self.above = self.buffer(self.batch, self.channels, 2, self.columns, images=0)  # what is read of two rows above
        self.line = self.buffer(self.batch, 1 + self.columns, self.channels, images=0)  # this row, after a zero pixel
        self.inputs = list(self.line[:, 1:].unbind(1))
        self.features = self.levels[0].ul_back.streams[0, :, 1:, : self.net.width].unbind(1)  # of every column

    def make_steps(self, colour: int) -> list[list[Call]]:
        left = self.net.stem_left.normed_weight[:, : self.channels, 1, 0].T.contiguous()
        there = [[self.levels[0].calls_there(j, self.line[:, j], left) for j in range(self.columns)]]
        back = [[self.levels[0].calls_back(j, None) for j in range(self.columns)]]
        for finer, level in pairwise(self.levels):
            windows = [finer.ul[:, 2 * j : 2 * j + 2].flatten(1) for j in range(level.columns)]
            there.append([level.calls_there(j, x, level.shrink_ul[1]) for j, x in enumerate(windows)])
            back.append([level.calls_back(j, finer) for j in range(level.columns)])
        self.steps_by_active = [self._steps(there[:active], back[:active]) for active in range(1, len(there) + 1)]
        return self.steps_by_active[0]

    def _steps(self, there: list[list[list[Call]]], back: list[list[list[Call]]]) -> list[list[Call]]:
        """The steps of a row in which the finest resolutions alone are active, as many as in the lists."""
        coarsest, steps = self.levels[-1], []
        for column in range(self.columns):
            here = [k for k in range(len(there)) if column % 2**k == 0]
            calls = [call for k in here for call in there[k][column >> k]]
            if len(here) == len(self.levels):
                turn = 1 + (column >> here[-1])
                calls.append(partial(coarsest.ul_return[:, turn].copy_, coarsest.ul[:, turn]))
            calls += [call for k in reversed(here) for call in back[k][column >> k]]
            steps.append(calls)
        return steps

    def begin_row(self) -> None:
        """What comes from above, stream u, and what it gives to stream ul."""
        levels, row, depth = self.levels, self.row, self.net.depth
        count = next((k for k in range(1, len(levels)) if (row >> (k - 1)) % 2), len(levels))
        active, self.steps = levels[:count], self.steps_by_active[count - 1]
        for k, level in enumerate(active):
            maps = self.contexts[k].at(row >> k)
            for stack, start in zip(level.stacks, (0, 2 * depth, 1, 2 * depth + 1), strict=True):  # u and ul in turn
                stack.begin_row(None if maps is None else maps[start:][: 2 * len(stack.blocks) : 2])
        for finer, level in reversed(list(pairwise(active))):
            level.ul_from_above(finer)  # the coarsest first: the finer one's finished row is overwritten next
        self._first_layer()
        for k, level in enumerate(active):
            if k:
                level.u_from_finer(active[k - 1])
            run(level.u_calls)
            level.two_rows[0].copy_(level.two_rows[1])
            level.two_rows[1, 1:-1].copy_(level.u)
        for k, level in reversed(list(enumerate(active))):
            if k + 1 == len(levels):
                level.u_return.copy_(level.u)
            else:
                levels[k + 1].u_to_finer(level, (row >> k) % 2)
            level.finish_u()
        if count < len(levels):
            levels[count].ul_to_lower(active[-1])

    def _first_layer(self) -> None:
        """The first layer of both streams, without what the colours of the left pixel give."""
        finest, known = self.levels[0], min(self.row, 2)
        if known:
            newest = self.line[:, 1:].transpose(1, 2).unsqueeze(2)
            self.above.copy_(torch.cat([self.above[:, :, 1:], newest], 2))
        u, ul = self.net.stem(F.pad(self.above[:, :, 2 - known :], (0, 0, 0, 1)))
        finest.u.copy_(u[:, :, -1].permute(2, 0, 1))
        finest.ul_pixels.copy_(ul[:, :, -1].transpose(1, 2))

    def compute(self, step: list[Call]) -> Tensor:
        run(step)
        return self.features[(self.t - 1) % self.columns].clone()

    def prefill(self, x: Tensor) -> None:
        net, rows = self.net, x.shape[2]
        biases = [in_pairs(context.until(-(-rows >> k))) for k, context in enumerate(self.contexts)]
        convs = [conv for conv in net.modules() if isinstance(conv, (ShiftedConv2d, ShiftedUp2d))]
        with recorded(convs, newest_row) as inputs:
            net.run(x, biases, newest=1)
        for k, level in enumerate(self.levels):
            for stack in level.stacks:
                stack.take_in(inputs)
            if k:
                grow = net.grow[k - 1]
                level.u_return.copy_(inputs[grow.u])
                level.ul_return_pixels.copy_(inputs[grow.ul].transpose(0, 1))
            if k + 1 < len(self.levels):
                shrink = net.shrink[k]
                level.two_rows[1, 1:-1] = inputs[shrink.u]
                level.ul_pixels.copy_(inputs[shrink.ul].transpose(0, 1))
        values = net.values(x[:, :, -2:])
        self.line[:, 1:] = values[:, :, -1].transpose(1, 2)
        self.above[:, :, 1] = values[:, :, 0]
