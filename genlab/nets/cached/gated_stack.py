"""Gated residual blocks during sampling: what the caches of PixelCNN++ and PixelSNAIL share.

A block is x + a * sigmoid(b), where (a, b) = second(concat_elu(hidden)) and hidden = first(concat_elu(x)), plus a side
input if the block has one (Salimans et al. 2017, arXiv:1701.05517). `concat_elu` is two operations on one buffer:
times (1, -1), and elu in place.

A `Stack` holds consecutive blocks with convolutions of two rows. What the convolutions read, `concat_elu` of x and of
hidden, is kept for the newest row. When a row begins, everything that the blocks read of the row above is computed as
batched products over all blocks and pixels. The rest is added to it in place, for a whole row or for a single pixel.

Operations are prepared together with their operands, so that a step only calls them in order.

L blocks, B images, w columns, F channels of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nets.cached.base import Cache
from genlab.nets.layers.shifted import GatedResNet, ShiftedConv2d

Call = Callable[[], Tensor]  # a `functools.partial` of an operation, buffers and weights


def run(calls: Iterable[Call]) -> None:
    """Make all calls in order."""
    for call in calls:
        call()


def newest_row(read: Tensor, result: Tensor) -> Tensor:
    """What a module read (B, D, H, W) of the last row, (w, B, D)."""
    return read[:, :, -1].permute(2, 0, 1).contiguous()


@contextmanager
def recorded(
    modules: Iterable[nn.Module], record: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[dict[nn.Module, Tensor]]:
    """Inside, `record(input, result)` of the last call of every module is kept."""
    records: dict[nn.Module, Tensor] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        records[module] = record(inputs[0], result)

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(hook))
        yield records


def matrix(conv: ShiftedConv2d) -> Tensor:
    """Weights of a 1x1 convolution for products (B, k) @ (k, n)."""
    return conv.normed_weight[:, :, 0, 0].T.contiguous()


def concat_elu_calls(x: Tensor, signs: Tensor, out: Tensor) -> list[Call]:
    """`concat_elu` of x (…, F), written to `out` (…, 2 F). `signs` (2, 1) are 1 and -1."""
    return [partial(torch.mul, x.unsqueeze(-2), signs, out=out.unflatten(-1, (2, -1))), partial(F.elu_, out)]


def gate_calls(x: Tensor, gates: Tensor, out: Tensor) -> list[Call]:
    """x + a * sigmoid(b) for gates (…, 2 F), a and b, written to `out` (…, F)."""
    a, b = gates.chunk(2, -1)
    return [b.sigmoid_, partial(torch.addcmul, x, a, b, out=out)]


class Stack:
    """Weights and buffers of L blocks, for images with w columns.

    Blocks with 2x3 convolutions are computed a row at a time, those with 2x2 convolutions a pixel at a time. `back`:
    the blocks lie in memory from last to first. The order of memory is that of all buffers and weights here.
    """

    def __init__(self, cache: Cache, blocks: Sequence[GatedResNet], columns: int, *, back: bool = False) -> None:
        self.order = range(len(blocks))[:: -1 if back else 1]
        self.blocks = [blocks[i] for i in self.order]
        self.columns, batch, count = columns, cache.batch, len(blocks)
        one = cache.zeros(1, 1) + 1
        self.signs = torch.cat([one, -one])
        width, taps = blocks[0].first.out_channels, blocks[0].first.kernel_size[1]
        # Weights (2 rows, taps, L, k, n); those on the current row for every block (taps, k, n).
        self.first, self.second = (
            torch.stack([getattr(block, name).normed_weight.permute(2, 3, 1, 0) for block in self.blocks], 2)
            for name in ("first", "second")
        )
        self.own_first, self.own_second = (w[1].transpose(0, 1).contiguous() for w in (self.first, self.second))
        self.first_bias = torch.stack([block.first.bias for block in self.blocks])[:, None, None]
        self.second_bias = torch.stack([block.second.bias for block in self.blocks])[:, None, None]
        if besides := [block.beside for block in self.blocks if block.beside is not None]:
            self.first_bias = self.first_bias + torch.stack([conv.bias for conv in besides])[:, None, None]
            weights = torch.stack([matrix(conv) for conv in besides])  # (L, 2 n F, F): all of x, then all of -x
            parts = weights.view(count, 2, -1, width, width).permute(2, 0, 1, 3, 4)
            self.sides = parts.flatten(2, 3)  # of every side input (L, 2 F, F)
        self.hidden = cache.buffer(count, columns, batch, width, images=2)
        self.gates = cache.buffer(count, columns, batch, 2 * width, images=2)
        # concat_elu of the streams before and after the blocks, and of what is hidden in them, with zeros beside the
        # row. Of a pixel and its left neighbour it lies side by side, so that one product serves both.
        padded = columns + taps - 1
        self.pixelwise = taps == 2
        shape, images = ((batch, padded), 1) if self.pixelwise else ((padded, batch), 2)
        self.streams, self.read = (cache.buffer(n, *shape, 2 * width, images=images) for n in (count + 1, count))
        self.before, self.after = (self.streams[i : i + count] for i in (int(back), int(not back)))

    def by_pixel(self, buffer: Tensor) -> Tensor:
        """A view (…, w + taps - 1, B, 2 F) of `streams` or `read`."""
        return buffer.transpose(-3, -2) if self.pixelwise else buffer

    def begin_row(self, biases: Sequence[Tensor] | None) -> None:
        """Compute all that the new row reads of the row above, for every pixel and block at once.

        `biases`: what a context adds to the gates of each block in this row, (w or 1, B, 2 F).
        """
        self.hidden.copy_(self.first_bias)
        self.gates.copy_(self.second_bias)
        if biases is not None:
            self.gates += torch.stack([biases[i] for i in self.order])
        sums = (self.hidden, self.before, self.first[0]), (self.gates, self.read, self.second[0])
        for total, buffer, weights in sums:
            finished = self.by_pixel(buffer).contiguous()
            for tap, weight in enumerate(weights):
                total.flatten(1, 2).baddbmm_(finished[:, tap : tap + self.columns].flatten(1, 2), weight)

    def add_side(self, which: int, side: Tensor) -> None:
        """Add a side input of every block: concat_elu of it (L, w, B, 2 F)."""
        self.hidden.flatten(1, 2).baddbmm_(side.flatten(1, 2), self.sides[which])

    def take_in(self, inputs: dict[nn.Module, Tensor]) -> None:
        """Take in a known row: what every convolution reads of it, (w, B, D)."""
        for i, block in enumerate(self.blocks):
            for buffer, conv in ((self.before[i], block.first), (self.read[i], block.second)):
                self.by_pixel(buffer)[1 : 1 + self.columns] = inputs[conv]

    def calls(self, x: Tensor, column: int | None = None, order: Sequence[int] | None = None) -> list[Call]:
        """Take a stream through all blocks and keep what comes out; or through those of `order` alone. In place.

        The stream x is that of the pixel in a column (B, F) or, if no column is given, that of a row (w, B, F).
        """

        def own(buffer: Tensor) -> Tensor:
            return buffer[1:-1] if column is None else buffer[:, column + 1]

        def convolve(total: Tensor, buffer: Tensor, weights: Tensor) -> list[Call]:
            if column is not None:
                left_and_own = buffer[:, column : column + 2].flatten(1)
                return [partial(total.addmm_, left_and_own, weights.flatten(0, 1))]
            shifted = [buffer[tap : tap + self.columns].flatten(0, 1) for tap in range(len(weights))]
            rows = total.flatten(0, 1)
            return [partial(rows.addmm_, tap, weight) for tap, weight in zip(shifted, weights, strict=True)]

        calls: list[Call] = []
        for i in order or self.order:
            hidden, gates = self.hidden[i], self.gates[i]
            if column is not None:
                hidden, gates = hidden[column], gates[column]
            calls += [
                *concat_elu_calls(x, self.signs, own(self.before[i])),
                *convolve(hidden, self.before[i], self.own_first[i]),
                *concat_elu_calls(hidden, self.signs, own(self.read[i])),
                *convolve(gates, self.read[i], self.own_second[i]),
                *gate_calls(x, gates, x),
            ]
        return calls if order else calls + concat_elu_calls(x, self.signs, own(self.after[self.order[-1]]))
