"""Cached sampling of a Row LSTM. State-to-state reads the row above, which is finished: once a row, one batched product
over the whole row and all layers for each tap. Input-to-state is what remains of a pixel: its own and its left streams.

Letters and the idea: pixelrnn_cache.py. r = row_kernel // 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genlab.nets.cached.pixelrnn import PixelRNNState
from genlab.nets.causal.pixelrnn import PixelRNN

if TYPE_CHECKING:
    from genlab.nets.causal.row_lstm import RowLSTMLayer


class RowLSTMState(PixelRNNState):
    """Streams of the current row; outputs and memory, of the row above until a pixel's own replace them."""

    def _allocate(self, net: PixelRNN) -> None:
        blocks: list[RowLSTMLayer] = list(net.blocks)  # type: ignore[arg-type]
        taps, self.reach = blocks[0].kernel, blocks[0].kernel // 2
        self.lines = self.zeros(self.depth, self.batch, self.reach + self.columns, self.width)  # streams
        self.outputs = self.zeros(self.depth, self.columns + 2 * self.reach, self.batch, self.units)
        self.memory = self.zeros(self.depth, self.columns, self.batch, self.units)
        self.gates = self.zeros(self.depth, self.columns, self.batch, 4 * self.units)

        ups = torch.stack([block.up.bias for block in blocks])
        excess = ups.flip(0).cumsum(0).flip(0)  # what a layer and later ones add (L, S)
        self.lines[:, :, : self.reach] = excess[:, None, None]  # left of the image as well, where the stream is 0
        self.first_bias = self.first_bias + excess[0]
        weight = torch.stack([block.inputs.masked_weight.unflatten(1, (-1, self.width)).sum(1) for block in blocks])
        bias = torch.stack([block.inputs.bias.flatten() for block in blocks])
        self.bias = (bias - (weight @ excess[..., None])[..., 0])[:, self.by_colour][:, None, None]
        states = torch.stack([block.states[self.by_colour].T for block in blocks])
        self.above = [weight.contiguous() for weight in states.chunk(taps, 1)]  # a tap of every layer (L, U, 4 U)

    def _begin(self, first: Tensor) -> None:
        self.lines[0, :, self.reach :] = first.transpose(0, 1)
        self.gates.copy_(self.bias)
        for tap, weight in enumerate(self.above):
            self.gates.flatten(1, 2).baddbmm_(self.outputs[:, tap : tap + self.columns].flatten(1, 2), weight)
        if self.of_rows:
            self.gates += self.of_rows[1][self.place(self.t)][..., self.by_colour]

    def _keep(self, layer: int, block: RowLSTMLayer, h: Tensor, bias: Tensor | None) -> Tensor:
        x = h.permute(1, 2, 3, 0)
        outputs, memory = block.run(x, bias)
        self.outputs[layer, self.reach : self.reach + self.columns] = outputs[:, -1].permute(1, 2, 0)
        self.memory[layer] = memory.permute(1, 2, 0)
        return block.add(x, outputs)

    def _places(self, layer: int, column: int, wide: slice, units: slice) -> tuple[Tensor, ...]:
        line, start, own = self.lines[layer].flatten(1), column * self.width, (self.reach + column) * self.width
        return (
            line[:, start : own + wide.stop],
            self.memory[layer, column, :, units],
            self.outputs[layer, self.reach + column],
            line[:, own : own + self.width],
        )

    def _weight(self, block: RowLSTMLayer, gates: Tensor, stop: int) -> Tensor:
        return block.inputs.masked_weight[gates, : self.reach * self.width + stop].T.contiguous()

    def _buffers(self) -> tuple[tuple[int, tuple[Tensor, ...]], ...]:
        return (1, (self.lines,)), (2, (self.outputs, self.memory, self.gates))
