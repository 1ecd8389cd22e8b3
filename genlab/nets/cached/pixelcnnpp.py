"""Cached sampling of PixelCNN++: each pixel costs its own arithmetic, nothing is computed twice.

The idea of Ramachandran et al. 2017 (arXiv:1704.06001): keep the activations that later pixels read; stream u is
computed once a row, stream ul once a pixel, what is 2^k times coarser every 2^k rows and columns. Ours adds that all
contributions of finished rows enter as batched products (see `pixelcnnpp_stack`), and what u tells ul with them.

A row begins: what is above, for all active resolutions; then u there and back; then its part in ul. A pixel: stem,
blocks there, where the column is a multiple of 2^k the coarser ones; back from the coarsest, whose result is stretched
to the two fine pixels of this row at once, to those of the next row when that begins.

B images, C channels, W columns, F channels of a stream, R resolutions; resolution k has w columns.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nets.cached.pixelcnnpp_stack import BlockStep, Pixels, Rows, normed, run_pixel

if TYPE_CHECKING:
    from genlab.nets.causal.pixelcnnpp import PixelCNNpp

Biases = list[tuple[Tensor | None, Tensor | None]]  # of every block of a resolution, of u and of ul


class LevelStep(NamedTuple):
    """Operands of stream ul at one pixel of one resolution."""

    stem: Tensor  # the stream as (B, 2 F): what the row gave
    left: Tensor  # what the pixel still lacks: the values to the left (B, C), or finer pixels (B, 4 F)
    weight: Tensor  # (C or 4 F, 2 F)
    there: tuple[Tensor, Tensor, list[BlockStep]]
    skipped: Tensor  # where the skips belong (L, B, F)
    skips: Tensor  # concat_elu of them (L, B, 2 F)
    skip_weight: Tensor  # (L, 2 F, F)
    back: tuple[Tensor, Tensor, list[BlockStep]]
    fine: tuple[Tensor, Tensor, Tensor, Tensor] | None  # bias, stream (B, F), weight, two finer pixels (B, 4 F)


class Level:
    """One resolution: the blocks of both streams there and back, and what leads to the next finer one and from it."""

    def __init__(
        self, net: PixelCNNpp, level: int, batch: int, biases: list[tuple[Tensor | None, Tensor | None]]
    ) -> None:
        self.rows, self.columns = net.size(level)
        there, back = net.pairs(level)
        depth = len(there)
        size = {"columns": self.columns, "batch": batch}
        u, ul = ([pair[i] for pair in biases] for i in range(2))
        self.u_there = Rows([p.u for p in there], back=False, biases=u[:depth], **size)
        self.u_back = Rows([p.u for p in back], back=True, biases=u[depth:], **size)
        self.ul_there = Pixels([p.ul for p in there], back=False, biases=ul[:depth], **size)
        self.ul_back = Pixels([p.ul for p in back], back=True, biases=ul[depth:], **size)
        self.stacks = self.u_there, self.u_back, self.ul_there, self.ul_back
        self.two_rows = self.u_there.zeros(2, self.columns + 2, batch, net.width)  # of u there: the last row and this
        if level:
            shrink, grow = net.shrink[level - 1], net.grow[level - 1]
            w = normed(shrink.u)
            self.shrink_u = w.permute(2, 3, 1, 0).flatten(0, 2), shrink.u.bias.detach()  # (6 F, F)
            w = normed(shrink.ul).permute(2, 3, 1, 0)  # (row, column, F, F)
            w = torch.stack([w, torch.zeros_like(w)], 2).flatten(1, 3)  # -x, beside x, is not read
            self.shrink_ul, self.shrink_ul_bias = torch.cat([w, -w], 2), _mirrored(shrink.ul.bias.detach())
            w = grow.u.normed_weight.detach()
            self.grow_u, self.grow_u_bias = w.permute(2, 0, 3, 1).flatten(2), grow.u.bias.detach()  # (2, F, 3 F)
            w = grow.ul.normed_weight.detach().permute(2, 0, 3, 1)  # (row, F, column, F)
            self.grow_ul = torch.stack([w, -w], 3).flatten(2)  # (2, F, 4 F)
            self.grow_ul_bias = _mirrored(grow.ul.bias.detach()).repeat(2)

    def u_from_finer(self, finer: Level) -> None:
        """The strided convolution of the last two rows of the finer stream."""
        last = 2 * self.columns - 1
        taps = [finer.two_rows[a, d : d + last : 2] for a in range(2) for d in range(3)]
        weight, bias = self.shrink_u
        self.u_there.x.copy_(torch.addmm(bias, torch.cat(taps, 2).flatten(0, 1), weight).view_as(self.u_there.x))

    def u_to_finer(self, finer: Level, row: int) -> None:
        """The transposed convolution to the upper (0) or lower (1) fine row."""
        x = self.u_back.x
        y = (x.flatten(0, 1) @ self.grow_u[row]).view(*x.shape[:2], 3, -1)  # taps: column before, even, odd
        fine = y[:, :, 1:].transpose(1, 2) + self.grow_u_bias
        fine[:-1, 1] += y[1:, :, 0]
        finer.u_back.x.copy_(fine.flatten(0, 1)[: finer.columns])

    def ul_from_above(self, finer: Level) -> None:
        """What the finished row of the finer stream adds to the new row here."""
        windows = finer.ul_there.x[:, : 2 * self.columns].reshape(-1, self.columns, 2 * self.shrink_ul_bias.numel())
        row = F.linear(windows, self.shrink_ul[0].T, self.shrink_ul_bias)
        self.ul_there.x[:, 1 : 1 + self.columns].flatten(2).copy_(row)

    def ul_to_lower(self, finer: Level) -> None:
        """What this row gives the lower of its two fine rows."""
        row = F.linear(self.ul_back.x[:, 1 : 1 + self.columns, 0], self.grow_ul[1].T, self.grow_ul_bias)
        finer.ul_back.x[:, 1:].flatten(2).view(len(row), self.columns, -1).copy_(row)

    def steps(self, finer: Level | None, current: Tensor, stem: Tensor) -> list[LevelStep]:
        """Operands of every pixel of a row. At the finest resolution `current` (B, 1 + W, C) are the input values."""
        there, back, found = self.ul_there, self.ul_back, []
        for j in range(self.columns):
            fine = None
            left, weight = current[:, j], stem
            if finer is not None:
                left, weight = finer.ul_there.x[:, 2 * j : 2 * j + 2].flatten(1), self.shrink_ul[1]
                slot = finer.ul_back.x[:, 2 * j + 1 : 2 * j + 3].flatten(1)
                fine = self.grow_ul_bias, back.x[:, j + 1, 0], self.grow_ul[0], slot
            found.append(
                LevelStep(
                    stem=there.x[:, j + 1].flatten(1),
                    left=left,
                    weight=weight,
                    there=(there.x_at[j], there.e_at[j], there.blocks_at[j]),
                    skipped=back.middle[:, j],
                    skips=there.e[: back.count, :, j + 1],
                    skip_weight=back.sides[1],
                    back=(back.x_at[j], back.e_at[j], back.blocks_at[j]),
                    fine=fine,
                )
            )
        return found


class PixelCNNppState:
    """Buffers, weights as the steps read them, and the steps of a row. `t` is the pixel to come; it changes in place.

    With `prefix` (images (B, C, H, W), rows), one forward pass fills in the known rows.
    `serial_from`: the step of a row from which one CPU thread does as well as several.
    """

    def __init__(
        self,
        net: PixelCNNpp,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.t, self.columns, self.active = 0, net.spec.width, 1
        biases = net.layer_biases(context)
        self.levels = [Level(net, k, batch, biases[k]) for k in range(net.resolutions)]
        zeros, channels = self.levels[0].u_there.zeros, net.values.channels
        step = 8 * batch * net.width**2  # multiply-adds of the largest product of a pixel, of the products of a row
        row = 36 * (2 * net.depth + 1) * self.columns * batch * net.width**2
        self.serial_from = self.columns if device.type != "cpu" or step > 2**22 else int(row > 2**27)
        self.put = net.values.put
        self.sign = self.levels[0].u_there.sign
        self.gated = zeros(batch, 1, net.width)
        self.rows = zeros(batch, channels + 1, 2, self.columns + 2)  # the two rows above, zeros around
        self.current = zeros(batch, 1 + self.columns, channels)  # this row, zeros before it
        self.stem_u = normed(net.stem_u), net.stem_u.bias.detach()
        left, above = normed(net.stem_left), normed(net.stem_above).clone()
        above[..., 0] += left[:, :, 0]  # the upper left pixel is read by both
        self.stem_above = above, net.stem_above.bias.detach()
        self.ones = left[:, channels, 1, 0] + net.stem_left.bias.detach()  # of the left pixel, where there is one
        self.values = [self.current[:, j] for j in (self.columns, *range(1, self.columns))]
        stem = left[:, :channels, 1, 0].T
        finest = self.levels[0].steps(None, self.current, torch.cat([stem, -stem], 1))
        coarser = [b.steps(a, self.current, stem) for a, b in pairwise(self.levels)]
        self.steps = [[step] for step in finest]
        for k, steps in enumerate(coarser, 1):
            for j, one in enumerate(steps):
                self.steps[j << k].append(one)
        if prefix is not None and prefix[1] > 0:
            self._prefill(net, *prefix, biases)

    def begin_row(self) -> None:
        """All of a row that needs no pixel of it."""
        row = self.t // self.columns
        levels = self.levels
        self.active = next((k for k in range(1, len(levels)) if (row >> (k - 1)) % 2), len(levels))
        active = levels[: self.active]
        for k, level in enumerate(active):
            for stack in level.stacks:
                stack.begin_row(row >> k)
        for finer, level in reversed(list(pairwise(active))):
            level.ul_from_above(finer)  # the coarsest first: the finer one's finished row is overwritten next
        self._stem(row)
        for k, level in enumerate(active):
            if k:
                level.u_from_finer(active[k - 1])
            level.u_there.run()
            level.two_rows[0].copy_(level.two_rows[1])
            level.two_rows[1, 1:-1].copy_(level.u_there.x)
        for k, level in reversed(list(enumerate(active))):
            if k + 1 == len(levels):
                level.u_back.x.copy_(level.u_there.x)
            else:
                levels[k + 1].u_to_finer(level, (row >> k) % 2)
            level.u_back.add_side(0, level.u_there.row(slice(level.u_back.count)))
            level.u_back.run()
            level.ul_there.add_side(0, level.u_there.row(level.u_there.outputs))
            level.ul_back.add_side(0, level.u_back.row(level.u_back.outputs))
        if self.active < len(levels):
            levels[self.active].ul_to_lower(active[-1])

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        for buffer in (self.rows, self.current):
            buffer.copy_(buffer.index_select(0, index))
        for level in self.levels:
            level.two_rows.copy_(level.two_rows.index_select(2, index))
            for stack in level.stacks:
                stack.reorder(index)

    def _stem(self, row: int) -> None:
        """The first layer of both streams, less the left pixel."""
        level = self.levels[0]
        above = self.rows.new_zeros(len(self.rows), self.columns, len(self.ones))
        if row:
            self.rows[:, :, 0].copy_(self.rows[:, :, 1])
            self._see(self.current[:, 1:].transpose(1, 2))
            level.u_there.x.copy_(F.conv2d(self.rows, *self.stem_u)[:, :, 0].permute(2, 0, 1))
            above += F.conv2d(self.rows[:, :, 1:], *self.stem_above)[:, :, 0].transpose(1, 2)
        else:
            level.u_there.x.zero_()
        above[:, 1:] += self.ones
        torch.mul(above[:, :, None], self.sign, out=level.ul_there.x[:, 1 : 1 + self.columns])

    def _see(self, values: Tensor) -> None:
        """Values (B, C, W) as the newest row above, with ones beside them."""
        self.rows[:, :-1, 1, 1:-1] = values
        self.rows[:, -1, 1, 1:-1] = 1

    def _prefill(self, net: PixelCNNpp, x: Tensor, rows: int, biases: list[Biases]) -> None:
        """Take in the first rows of x (B, C, H, W): a forward pass that keeps every layer's newest row."""
        newest: dict[nn.Module, Tensor] = {}  # what goes into a convolution: (w, B, D)

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            newest[module] = inputs[0][:, :, -1].permute(2, 0, 1)

        convs = [c for p in net.blocks for b in (p.u, p.ul) for c in (b.first, b.second)]
        convs += [c for shrink in net.shrink for c in (shrink.u, shrink.ul)]
        convs += [c for grow in net.grow for c in (grow.u, grow.ul)]  # type: ignore[misc]
        hooks = [conv.register_forward_pre_hook(keep) for conv in convs]
        cut = [
            [
                tuple(None if bias is None else bias[:, :, : -(-rows >> k)] for bias in pair)  # a label's row is 0
                for pair in pairs
            ]
            for k, pairs in enumerate(biases)
        ]
        try:
            net.run(x[:, :, :rows], cut, newest=1)  # type: ignore[arg-type]
        finally:
            for hook in hooks:
                hook.remove()
        for k, level in enumerate(self.levels):
            there, back = net.pairs(k)
            for stack, pairs, name in zip(level.stacks, (there, back) * 2, ("u", "u", "ul", "ul"), strict=True):
                for i, state, pair in zip(stack.order, stack.states, pairs, strict=False):
                    block = getattr(pair, name)
                    first, second = newest[block.first], newest[block.second]
                    if isinstance(stack, Rows):
                        stack.e[state, 1:-1], stack.f[i, 1:-1] = first, second
                    else:
                        stack.e[state, :, 1:], stack.f[i, :, 1:] = first.transpose(0, 1), second.transpose(0, 1)  # type: ignore[attr-defined]
            if k:
                level.u_back.x.copy_(newest[net.grow[k - 1].u])  # type: ignore[index, arg-type]
                ul = newest[net.grow[k - 1].ul].transpose(0, 1)  # type: ignore[index, arg-type]
                level.ul_back.x[:, 1 : 1 + level.columns] = ul[:, :, None] * self.sign
            if k + 1 < len(self.levels):
                level.two_rows[1, 1:-1] = newest[net.shrink[k].u]  # type: ignore[index]
                ul = newest[net.shrink[k].ul].transpose(0, 1)  # type: ignore[index]
                level.ul_there.x[:, 1 : 1 + level.columns] = ul[:, :, None] * self.sign
        values = net.embed(x[:, :, max(rows - 2, 0) : rows])[:, :-1]
        self.current[:, 1:] = values[:, :, -1].transpose(1, 2)
        if rows > 1:
            self._see(values[:, :, 0])
        self.t = rows * self.columns


def advance(previous: Tensor | None, state: PixelCNNppState) -> Tensor:
    """One step: the previous values (B, C), None if the state has them -> features (B, D) of the next pixel."""
    column = state.t % state.columns
    if previous is not None:
        state.put(previous, state.values[column])
    if column == 0:
        state.begin_row()
    state.t += 1
    gated, sign = state.gated, state.sign
    steps = state.steps[column][: state.active]
    for step in steps:
        step.stem.addmm_(step.left, step.weight)
        run_pixel(*step.there, gated, sign)
    if len(steps) == len(state.levels):
        steps[-1].back[0].copy_(steps[-1].there[0])
    for step in reversed(steps):
        step.skipped.baddbmm_(step.skips, step.skip_weight)
        run_pixel(*step.back, gated, sign)
        if step.fine is not None:
            bias, stream, weight, fine = step.fine
            torch.addmm(bias, stream, weight, out=fine)
    return steps[0].back[2][-1].next[:, 0].clone()


def _mirrored(bias: Tensor) -> Tensor:
    """Of a stream and its negative (2 F,)."""
    return torch.cat([bias, -bias])
