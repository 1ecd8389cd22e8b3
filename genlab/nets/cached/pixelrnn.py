"""What the caches of the recurrent nets share (`row_lstm.py`, `diagonal_bilstm.py`).

Beyond what all caches do (`base.py`):

- What a layer reads of finished rows enters once a row, as batched products over all layers, written to where the gates
  of every pixel then add the rest: what the layer reads of its own row, one product of (B, k) with (k, 4 n).
- What is left of a layer at one value is eight operations: two products and six for the cell. Masks are sliced away:
  the weights of colour c read exactly the groups <= c.
- Some of what joins the stream behind a layer is known before the row begins, such as the bias of its 1x1 convolution.
  No operation is spent on it: the stream carries it from the start. So where a layer reads the stream, the stream has
  an excess, which is what this layer and later ones add. What the excess makes of the gates is subtracted once a row.

B images, c values of a step, D features, L layers, S stream width, U = S // 2 units, W columns; small letters s and n
for the parts of S and U that belong to one colour, S' and N' for the colours so far. The gates of a pixel are 4 U
numbers: in the cache colour by colour, so that those of a colour lie together; within a colour o, f, i, g.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.nets.cached.base import Cache, by_column, pointwise_weight
from genlab.nets.cached.first_layer import FirstLayer
from genlab.nets.causal.pixelrnn import PixelRNN


class Cell(NamedTuple):
    """Operands of an LSTM cell, views of (…, n) numbers but for the first two."""

    gates: Tensor  # from finished rows and the bias; then the gates (…, 4 n)
    sigmoid: Tensor  # o, f and i (…, 3 n)
    o: Tensor
    f: Tensor
    i: Tensor
    g: Tensor
    memory: Tensor  # of the pixel before in the LSTM; then of this one
    h: Tensor  # output


def cells(gates: Tensor, memory: Tensor, h: Tensor) -> list[list[Cell]]:
    """Gates (L, W, B, 4 n), memory and output (L, W, B, n) -> for every column the cells of all layers."""
    views = gates, gates[..., : 3 * h.shape[-1]], *gates.chunk(4, -1), memory, h
    columns = zip(*(by_column(view) for view in views), strict=True)
    return [[Cell(*operands) for operands in zip(*column, strict=True)] for column in columns]


class ColourSteps:
    """The steps of one colour."""

    def __init__(self, cache: PixelRNNCache, colour: int) -> None:
        net = cache.net
        wide, units, out = cache.slices(colour, net.width, net.units, net.out_width * net.groups)
        part = slice(4 * units.start, 4 * units.stop)
        self.reads, self.first = cache.first.reads(colour), cache.first.row_weight(wide, colour)  # (B, k), (k, s)
        weights = [cache.weight(block, cache.by_colour[part], wide.stop) for block in net.blocks]  # (k, 4 n)
        up = [pointwise_weight(block.up, wide, units.stop) for block in net.blocks]  # (N', s)
        self.final, self.finals = cache.final[:, wide], cache.final[:, : wide.stop]  # (B, s); colours so far (B, S')
        self.last, self.bias = pointwise_weight(net.last, out, wide.stop), net.last.bias[out]  # (S', D), (D,)
        inputs, memory, outputs, stream = cache.places(wide.stop)
        columns = zip(
            by_column(inputs),  # (B, k)
            cells(cache.gates[..., part], memory[..., units], outputs[..., units]),
            by_column(outputs[..., : units.stop]),  # colours so far (B, N')
            by_column(stream[..., wide]),  # that the layer reads, this colour (B, s)
            strict=True,
        )
        # For every column the first stream, and what every layer needs; the last is where its result goes.
        self.columns = [
            (streams[0], list(zip(read, weights, of_cells, output, up, (*streams[1:], self.final), strict=True)))
            for read, of_cells, output, streams in columns
        ]

    def run(self, column: int) -> Tensor:
        """The step at a column -> features (B, D)."""
        tanh, addmm = torch.tanh, torch.addmm  # looked up once: a step is a hundred operations
        stream, layers = self.columns[column]
        stream.addmm_(self.reads[column], self.first)
        for inputs, weight, cell, outputs, up, out in layers:
            gates, sigmoid, o, f, i, g, memory, h = cell
            gates.addmm_(inputs, weight)
            sigmoid.sigmoid_()
            g.tanh_()
            memory.mul_(f).addcmul_(i, g)
            tanh(memory, out=h).mul_(o)
            stream = addmm(stream, outputs, up, out=out)
        stream.relu_()
        return addmm(self.bias, self.finals, self.last).relu_()


class PixelRNNCache(Cache):
    """What both caches do alike. A subclass allocates its own buffers too, among them `gates` (L, W, B, 4 U)."""

    rows_alike = True
    colour_steps = ColourSteps
    net: PixelRNN
    gates: Tensor

    def allocate(self) -> None:
        net = self.net
        self.depth, self.width, self.units = len(net.blocks), net.width, net.units
        self.by_colour = self.colour_by_colour(4, net.units)
        self.first = FirstLayer(self, net.first)
        self.inputs = self.first.inputs
        self.final = self.buffer(self.batch, net.width, images=0)

    def work(self) -> tuple[int, int]:
        return self.batch * self.width * 4 * self.units, self.depth * self.columns * self.batch * 12 * self.units**2

    @abstractmethod
    def begin_layers(self, first: Tensor) -> None:
        """Begin the gates of the new row, given what its first layer reads of the rows above (W, B, S)."""

    @abstractmethod
    def keep(self, i: int, block: Any, h: Tensor, bias: Any) -> Tensor:
        """Run layer i on known rows of its stream (B, S, rows, W), keep what the next row reads -> its output."""

    @abstractmethod
    def places(self, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where the layers find and leave what belongs to the pixels of the row, (L, W, B, …) each.

        What the gates read of the row (k numbers; of the pixel itself `stop` channels of its stream), memory (U),
        outputs (U) and stream (S).
        """

    @abstractmethod
    def weight(self, block: Any, gates: Tensor, stop: int) -> Tensor:
        """Weights (k, 4 n) of the gates with those numbers for `inputs`, of whose pixel `stop` channels count."""

    def begin_row(self) -> None:
        """What the first layer and the gates of all layers read of finished rows."""
        first, biases = self.first.begin_row(), self.contexts[0].at(self.row)
        self.begin_layers(first + biases[0] if biases else first)
        if biases:
            self.gates += torch.stack(biases[1:])[..., self.by_colour]

    def prefill(self, x: Tensor) -> None:
        """A forward pass of which every layer keeps what the next row reads."""
        values = self.net.values(x)
        self.first.prefill(values)
        first, *biases = self.contexts[0].until(x.shape[2])
        h = self.net.first(values)
        if first is not None:
            h = h + first
        for i, (block, bias) in enumerate(zip(self.net.blocks, self.net.gate_biases(values, biases), strict=True)):
            h = self.keep(i, block, h, bias)
