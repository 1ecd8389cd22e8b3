"""Cache of a Row LSTM. Letters and the idea: `pixelrnn.py`.

State-to-state reads the row above, which is finished: once a row, one batched product over the whole row and all layers
for each tap. Input-to-state is what remains of a pixel: its own stream and those to its left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.nets.cached.pixelrnn import PixelRNNCache
from genlab.nets.causal.row_lstm import RowLSTM, RowLSTMLayer


class RowLSTMCache(PixelRNNCache):
    """Streams of the current row; outputs and memory, of the row above until a pixel's own replace them."""

    net: RowLSTM

    def allocate(self) -> None:
        super().allocate()
        blocks, depth, columns, batch, units = self.net.blocks, self.depth, self.columns, self.batch, self.units
        taps, self.reach = self.net.row_kernel, self.net.row_kernel // 2
        self.lines = self.buffer(depth, batch, self.reach + columns, self.width, images=1)  # streams
        self.outputs = self.buffer(depth, columns + 2 * self.reach, batch, units, images=2)
        self.memory = self.buffer(depth, columns, batch, units, images=2)
        self.gates = self.buffer(depth, columns, batch, 4 * units, images=2)

        ups = torch.stack([block.up.bias for block in blocks])
        excess = ups.flip(0).cumsum(0).flip(0)  # what a layer and later ones add (L, S)
        self.lines[:, :, : self.reach] = excess[:, None, None]  # left of the image as well, where the stream is 0
        self.first.bias = self.first.bias + excess[0]
        weight = torch.stack([block.inputs.masked_weight.unflatten(1, (-1, self.width)).sum(1) for block in blocks])
        bias = torch.stack([block.inputs.bias.flatten() for block in blocks])
        self.bias = (bias - (weight @ excess[..., None])[..., 0])[:, self.by_colour][:, None, None]
        states = torch.stack([block.states[self.by_colour].T for block in blocks])
        self.above = [weight.contiguous() for weight in states.chunk(taps, 1)]  # a tap of every layer (L, U, 4 U)

    def begin_layers(self, first: Tensor) -> None:
        self.lines[0, :, self.reach :] = first.transpose(0, 1)
        self.gates.copy_(self.bias)
        for tap, weight in enumerate(self.above):
            self.gates.flatten(1, 2).baddbmm_(self.outputs[:, tap : tap + self.columns].flatten(1, 2), weight)

    def keep(self, i: int, block: RowLSTMLayer, h: Tensor, bias: Tensor | None) -> Tensor:
        x = h.permute(1, 2, 3, 0)
        outputs, memory = block.run(x, bias)
        self.outputs[i, self.reach : self.reach + self.columns] = outputs[:, -1].permute(1, 2, 0)
        self.memory[i] = memory.permute(1, 2, 0)
        return block.add(x, outputs)

    def places(self, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        windows = self.lines.flatten(2).unfold(2, self.reach * self.width + stop, self.width)  # (L, B, W, k)
        outputs, streams = self.outputs[:, self.reach : self.reach + self.columns], self.lines[:, :, self.reach :]
        return windows.transpose(1, 2), self.memory, outputs, streams.transpose(1, 2)

    def weight(self, block: RowLSTMLayer, gates: Tensor, stop: int) -> Tensor:
        return block.inputs.masked_weight[gates, : self.reach * self.width + stop].T.contiguous()
