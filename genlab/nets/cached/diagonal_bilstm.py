"""Cache of a Diagonal BiLSTM. Letters and the idea: `pixelrnn.py`.

Rightward, a pixel's state reads the pixel above and the one before it. What the pixel above contributes enters once a
row for all pixels and layers; the pixel before it and its own stream are one product a layer. Leftward, nothing of a
row is needed before the next row, and then all inputs of the leftward LSTMs are known: W steps over all layers at once,
from the right, when the next row begins. What their map adds to the streams one row below is then known before that row
begins: it is part of the excess that streams carry.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.nets.cached.pixelrnn import PixelRNNCache, cells
from genlab.nets.causal.diagonal_bilstm import Biases, DiagonalBiLSTM, DiagonalLayer


class DiagonalBiLSTMCache(PixelRNNCache):
    """Rightward outputs beside the streams of the current row; leftward outputs of the row above.

    Place j of `lines` has the rightward output of pixel j - 1 and then the stream of pixel j: what j's gates read.
    """

    net: DiagonalBiLSTM

    def allocate(self) -> None:
        super().allocate()
        depth, columns, batch, units = self.depth, self.columns, self.batch, self.units
        self.lines = self.buffer(depth, batch, columns + 1, units + self.width, images=1)
        self.memory = self.buffer(depth, batch, units, images=1)
        self.gates = self.buffer(depth, columns, batch, 4 * units, images=2)
        self.excess = self.buffer(depth, columns, batch, self.width, images=2)
        self.left = self.buffer(depth, columns, batch, units, images=2)
        self.left_gates = self.zeros(depth, columns, batch, 4 * units)
        self.left_memory = self.zeros(depth, batch, units)
        # The cells of all layers at once, one for each column.
        of_columns = self.left_gates, self.left_memory[:, None].expand_as(self.left), self.left
        self.left_cells = cells(*(x.transpose(0, 1)[None] for x in of_columns))
        self.left_known = True  # of the row above; before the first row it is nothing

        def stacked(of_layer: Callable[[DiagonalLayer], Tensor]) -> Tensor:
            return torch.stack([of_layer(block) for block in self.net.blocks]).contiguous()

        order = self.by_colour
        self.up = stacked(lambda b: b.up.masked_weight[:, :, 0, 0].T)  # (L, U, S)
        self.up_bias = stacked(lambda b: b.up.bias[None])
        self.input = stacked(lambda b: b.inputs[0].masked_weight[order].T)  # (L, S, 4 U)
        self.bias = stacked(lambda b: b.inputs[0].bias.flatten()[None, order])
        self.above = stacked(lambda b: b.states[0, order, :units].T)  # (L, U, 4 U)
        self.left_input = stacked(lambda b: b.inputs[1].masked_weight.T)
        self.left_bias = stacked(lambda b: b.inputs[1].bias.flatten()[None])
        self.left_above = stacked(lambda b: b.states[1, :, :units].T)
        self.left_before = stacked(lambda b: b.states[1, :, units:].T)
        self.own = self.net.own.weight[:, :, 0, 0].T.contiguous()

    def begin_row(self) -> None:
        """The row above leftward, then as for both nets."""
        if not self.left_known:
            self.run_leftward()
        self.left_known = False
        super().begin_row()

    def run_leftward(self) -> None:
        """The leftward LSTMs of all layers on the row that has just been finished, over those of the row before."""
        streams = (self.lines[:, :, :-1, self.units :].transpose(1, 2) - self.excess).flatten(1, 2)
        gates = self.left_gates.flatten(1, 2)
        torch.baddbmm(self.left_bias, streams, self.left_input, out=gates)
        gates.baddbmm_(self.left.flatten(1, 2), self.left_above)
        gates[0].addmm_(self.first.newest().transpose(0, 1).flatten(0, 1), self.own)
        if biases := self.contexts[0].at(self.row - 1):
            self.left_gates += torch.stack(biases[1:])[..., 4 * self.units :]
        self.left_memory.zero_()
        before = None  # the output of the pixel to the right
        for (cell,) in reversed(self.left_cells):
            of_pixel, sigmoid, o, f, i, g, memory, h = cell
            if before is not None:
                of_pixel.baddbmm_(before, self.left_before)
            sigmoid.sigmoid_()
            g.tanh_()
            memory.mul_(f).addcmul_(i, g)
            before = torch.tanh(memory, out=h).mul_(o)

    def begin_layers(self, first: Tensor) -> None:
        adds = torch.baddbmm(self.up_bias, self.left.flatten(1, 2), self.up)  # behind every layer (L, W B, S)
        excess = adds.flip(0).cumsum(0).flip(0)
        above = self.lines[:, :, 1:, : self.units].transpose(1, 2).flatten(1, 2)
        gates = torch.baddbmm(self.bias, above, self.above, out=self.gates.flatten(1, 2))
        gates.baddbmm_(excess, self.input, alpha=-1)
        self.excess.copy_(excess.view_as(self.excess))
        self.lines[0, :, :-1, self.units :] = (first + self.excess[0]).transpose(0, 1)
        self.memory.zero_()

    def keep(self, i: int, block: DiagonalLayer, h: Tensor, bias: Biases) -> Tensor:
        x = h.permute(1, 2, 3, 0)
        outputs = block.run(x, bias)
        right, left = outputs[:, :, -1]
        self.lines[i, :, 1:, : self.units] = right.permute(2, 1, 0)
        self.left[i] = left.permute(1, 2, 0)
        return block.add(x, outputs)

    def places(self, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        here, following = self.lines[:, :, :-1].transpose(1, 2), self.lines[:, :, 1:].transpose(1, 2)
        memory = self.memory[:, None].expand(-1, self.columns, -1, -1)
        return here[..., : self.units + stop], memory, following[..., : self.units], here[..., self.units :]

    def weight(self, block: DiagonalLayer, gates: Tensor, stop: int) -> Tensor:
        states, inputs = block.states[0, gates, self.units :], block.inputs[0].masked_weight[gates, :stop]
        return torch.cat([states, inputs], 1).T.contiguous()
