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
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.nets.cached.base import Cache, pointwise_weight
from genlab.nets.cached.first_layer import FirstLayer
from genlab.nets.causal.pixelrnn import PixelRNN
from genlab.nets.layers.masked import group_slices


@dataclass(slots=True)
class Cell:
    """Operands of an LSTM cell, all (…, n) but for `sigmoid`."""

    sigmoid: Tensor  # of the gates, o, f and i (…, 3 n)
    o: Tensor
    f: Tensor
    i: Tensor
    g: Tensor
    memory: Tensor  # of the pixel that comes before in the LSTM; then of this one
    h: Tensor  # output

    @classmethod
    def of(cls, gates: Tensor, memory: Tensor, h: Tensor) -> Cell:
        """From the gates (…, 4 n)."""
        n = memory.shape[-1]
        o, f, i, g = gates.split(n, -1)
        return cls(gates[..., : 3 * n], o, f, i, g, memory, h)

    def run(self) -> None:
        """Gates before their nonlinearities -> memory and output."""
        self.sigmoid.sigmoid_()
        self.g.tanh_()
        self.memory.mul_(self.f).addcmul_(self.i, self.g)
        torch.tanh(self.memory, out=self.h).mul_(self.o)


@dataclass(slots=True)
class LayerStep:
    """Operands of one layer at one value, in the order of use."""

    gates: Tensor  # from finished rows and the bias; then the gates, this colour (B, 4 n)
    inputs: Tensor  # what the gates read of the current row (B, k)
    weight: Tensor  # (k, 4 n)
    cell: Cell
    outputs: Tensor  # output, colours so far (B, N')
    up: Tensor  # (N', s)
    stream: Tensor  # that the layer reads, this colour (B, s)
    out: Tensor  # that the next one reads (B, s)


@dataclass(slots=True)
class ValueStep:
    """Operands of one value of a row: first layer, LSTM layers, last layer."""

    stream: Tensor  # from the rows above and the bias; then the residual stream, this colour (B, s)
    read: Tensor  # what the first layer reads of the row (B, k)
    first: Tensor  # (k, s)
    layers: list[LayerStep]
    final: Tensor  # stream behind the last layer, this colour (B, s)
    finals: Tensor  # colours so far (B, S')
    bias: Tensor  # (D,)
    last: Tensor  # (S', D)


class Places(NamedTuple):
    """Where a layer finds and leaves what belongs to a pixel."""

    inputs: Tensor  # what the gates read of the current row, colours so far (B, k)
    memory: Tensor  # of this colour (B, n)
    outputs: Tensor  # (B, U)
    stream: Tensor  # (B, S)


class PixelRNNCache(Cache):
    """What both caches do alike. A subclass allocates its own buffers too, among them `gates` (L, W, B, 4 U)."""

    rows_alike = True
    net: PixelRNN
    gates: Tensor

    def allocate(self) -> None:
        net = self.net
        self.depth, self.width, self.units = len(net.blocks), net.width, net.units
        each = torch.arange(4 * net.units, device=self.device).view(4, -1)
        self.by_colour = torch.cat([each[:, units].flatten() for units in group_slices(net.units, net.groups)])
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
    def places(self, i: int, column: int, wide: slice, units: slice) -> Places:
        """The places of layer i at a column, for the channels `wide` and the `units` of a colour."""

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

    def make_steps(self, colour: int) -> list[ValueStep]:
        net = self.net
        wide, units, out = self.slices(colour, net.width, net.units, net.out_width * net.groups)
        part = slice(4 * units.start, 4 * units.stop)  # the gates of this colour
        weights = [self.weight(block, self.by_colour[part], wide.stop) for block in net.blocks]
        up = [pointwise_weight(block.up, wide, units.stop) for block in net.blocks]
        first, reads = self.first.row_weight(wide, colour), self.first.reads(colour)
        last, bias = pointwise_weight(net.last, out, wide.stop), net.last.bias[out]
        final, finals = self.final[:, wide], self.final[:, : wide.stop]
        steps = []
        for j, read in enumerate(reads):
            places = [self.places(i, j, wide, units) for i in range(self.depth)]
            streams = [place.stream[:, wide] for place in places] + [final]
            layers = []
            for i, place in enumerate(places):
                gates = self.gates[i, j, :, part]
                layers.append(
                    LayerStep(
                        gates=gates,
                        inputs=place.inputs,
                        weight=weights[i],
                        cell=Cell.of(gates, place.memory, place.outputs[:, units]),
                        outputs=place.outputs[:, : units.stop],
                        up=up[i],
                        stream=streams[i],
                        out=streams[i + 1],
                    )
                )
            steps.append(ValueStep(streams[0], read, first, layers, final, finals, bias, last))
        return steps

    def compute(self, step: ValueStep) -> Tensor:
        addmm = torch.addmm  # looked up once: a step is a hundred operations
        step.stream.addmm_(step.read, step.first)
        for layer in step.layers:
            layer.gates.addmm_(layer.inputs, layer.weight)
            layer.cell.run()
            addmm(layer.stream, layer.outputs, layer.up, out=layer.out)
        step.final.relu_()
        return addmm(step.bias, step.finals, step.last).relu_()
