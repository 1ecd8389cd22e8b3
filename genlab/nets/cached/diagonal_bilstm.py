"""Cached sampling of a Diagonal BiLSTM.

Rightward, a pixel's state reads the one above, for all pixels and layers once a row, and the one before it, which
together with its own stream is one product a layer. Leftward, nothing of a row is needed before the next row, and then
all of its inputs are known: W steps over all layers at once, from the right, when the next row begins. What its map
adds to the streams one row below is then known before that row begins: it is part of the excess that streams carry.

Letters and the idea: pixelrnn_cache.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.nets.cached.pixelrnn import PixelRNNState

if TYPE_CHECKING:
    from genlab.nets.causal.diagonal_bilstm import Biases, DiagonalBiLSTM, DiagonalLayer


class DiagonalBiLSTMState(PixelRNNState):
    """Rightward outputs beside the streams of the current row; leftward outputs of the row above.

    Place j of `lines` has the rightward output of pixel j - 1 and then the stream of pixel j: what j's gates read.
    """

    def _allocate(self, net: DiagonalBiLSTM) -> None:  # type: ignore[override]
        depth, columns, batch, units = self.depth, self.columns, self.batch, self.units
        self.lines = self.zeros(depth, batch, columns + 1, units + self.width)
        self.memory = self.zeros(depth, batch, units)
        self.gates = self.zeros(depth, columns, batch, 4 * units)
        self.excess = self.zeros(depth, columns, batch, self.width)
        self.left = self.zeros(depth, columns, batch, units)
        self.left_memory = self.zeros(depth, batch, units)
        self.left_gates = self.zeros(depth, columns, batch, 4 * units)
        self.left_known = True  # of the row above; before the first row it is nothing

        def stacked(tensors: list[Any]) -> Tensor:
            return torch.stack(tensors).contiguous()

        order, blocks = self.by_colour, net.blocks
        self.up = stacked([block.up.masked_weight[:, :, 0, 0].T for block in blocks])  # (L, U, S)
        self.up_bias = stacked([block.up.bias[None] for block in blocks])
        self.input = stacked([block.inputs[0].masked_weight[order].T for block in blocks])  # (L, S, 4 U)
        self.bias = stacked([block.inputs[0].bias.flatten()[None, order] for block in blocks])
        self.above = stacked([block.states[0, order, :units].T for block in blocks])  # (L, U, 4 U)
        self.left_input = stacked([block.inputs[1].masked_weight.T for block in blocks])
        self.left_bias = stacked([block.inputs[1].bias.flatten()[None] for block in blocks])
        self.left_above = stacked([block.states[1, :, :units].T for block in blocks])
        self.left_before = stacked([block.states[1, :, units:].T for block in blocks])
        self.own = net.own.weight[:, :, 0, 0].T.contiguous()
        self.left_steps = [
            (gates, gates[..., : 3 * units], *gates.split(units, -1), h)
            for gates, h in zip(self.left_gates.unbind(1), self.left.unbind(1), strict=True)
        ]

    def begin_row(self) -> None:
        """The row above leftward, then as for every net."""
        if not self.left_known:
            self._leftward()
        self.left_known = False
        super().begin_row()

    def _leftward(self) -> None:
        """The leftward LSTMs of all layers on the row that has just been finished, over those of the row before."""
        streams = (self.lines[:, :, :-1, self.units :].transpose(1, 2) - self.excess).flatten(1, 2)
        gates = self.left_gates.flatten(1, 2)
        torch.baddbmm(self.left_bias, streams, self.left_input, out=gates)
        gates.baddbmm_(self.left.flatten(1, 2), self.left_above)
        gates[0].addmm_(self.values().transpose(0, 1).flatten(0, 1), self.own)
        if self.of_rows:
            self.left_gates += self.of_rows[1][self.place(self.t - 1)][..., 4 * self.units :]
        memory, before = self.left_memory.zero_(), None
        for of_pixel, sigmoid, o, f, i, g, h in reversed(self.left_steps):
            if before is not None:
                of_pixel.baddbmm_(before, self.left_before)
            sigmoid.sigmoid_()
            g.tanh_()
            memory.mul_(f).addcmul_(i, g)
            torch.tanh(memory, out=h).mul_(o)
            before = h

    def _begin(self, first: Tensor) -> None:
        adds = torch.baddbmm(self.up_bias, self.left.flatten(1, 2), self.up)  # behind every layer (L, W B, S)
        excess = adds.flip(0).cumsum(0).flip(0)
        above = self.lines[:, :, 1:, : self.units].transpose(1, 2).flatten(1, 2)
        gates = torch.baddbmm(self.bias, above, self.above, out=self.gates.flatten(1, 2))
        gates.baddbmm_(excess, self.input, alpha=-1)
        self.excess.copy_(excess.view_as(self.excess))
        self.lines[0, :, :-1, self.units :] = (first + self.excess[0]).transpose(0, 1)
        self.memory.zero_()
        if self.of_rows:
            self.gates += self.of_rows[1][self.place(self.t)][..., self.by_colour]

    def _keep(self, layer: int, block: DiagonalLayer, h: Tensor, bias: Biases) -> Tensor:
        x = h.permute(1, 2, 3, 0)
        outputs = block.run(x, bias)
        right, left = outputs[:, :, -1]
        self.lines[layer, :, 1:, : self.units] = right.permute(2, 1, 0)
        self.left[layer] = left.permute(1, 2, 0)
        return block.add(x, outputs)

    def _places(self, layer: int, column: int, wide: slice, units: slice) -> tuple[Tensor, ...]:
        here, following = self.lines[layer, :, column], self.lines[layer, :, column + 1]
        stop = self.units + wide.stop
        return here[:, :stop], self.memory[layer, :, units], following[:, : self.units], here[:, self.units :]

    def _weight(self, block: DiagonalLayer, gates: Tensor, stop: int) -> Tensor:
        return torch.cat(
            [block.states[0, gates, self.units :], block.inputs[0].masked_weight[gates, :stop]], 1
        ).T.contiguous()

    def _buffers(self) -> tuple[tuple[int, tuple[Tensor, ...]], ...]:
        return (1, (self.lines, self.memory)), (2, (self.gates, self.excess, self.left))
