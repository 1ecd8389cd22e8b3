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
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.nets.cached.base import Cache, pointwise_weight
from genlab.nets.cached.calls import Call, relu_of
from genlab.nets.cached.first_layer import FirstLayer
from genlab.nets.causal.pixelrnn import PixelRNN
from genlab.nets.layers.masked import group_slices


def cell_calls(gates: Tensor, memory: Tensor, h: Tensor) -> list[Call]:
    """An LSTM cell: gates (…, 4 n) before their nonlinearities, memory (…, n) in place, output h (…, n)."""
    o, f, i, g = gates.chunk(4, -1)
    return [
        gates[..., : 3 * memory.shape[-1]].sigmoid_,
        g.tanh_,
        partial(memory.mul_, f),
        partial(memory.addcmul_, i, g),
        partial(torch.tanh, memory, out=h),
        partial(h.mul_, o),
    ]


class Places(NamedTuple):
    """Where a layer finds and leaves what belongs to a pixel."""

    inputs: Tensor  # what the gates read of the current row, colours so far (B, k)
    memory: Tensor  # of the pixel that comes before in the LSTM; then of this one, this colour (B, n)
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

    def make_steps(self, colour: int) -> list[list[Call]]:
        net = self.net
        wide, units, out = self.slices(colour, net.width, net.units, net.out_width * net.groups)
        part = slice(4 * units.start, 4 * units.stop)  # the gates of this colour
        first, last = self.first.row_weight(wide, colour), pointwise_weight(net.last, out, wide.stop)
        weights = [self.weight(block, self.by_colour[part], wide.stop) for block in net.blocks]  # (k, 4 n)
        up = [pointwise_weight(block.up, wide, units.stop) for block in net.blocks]  # (N', s)
        final, finals = self.final[:, wide], self.final[:, : wide.stop]  # this colour, colours so far
        steps = []
        for j, read in enumerate(self.first.reads(colour)):
            places = [self.places(i, j, wide, units) for i in range(self.depth)]
            streams = [place.stream[:, wide] for place in places] + [final]  # before each layer and the last (B, s)
            step: list[Call] = [partial(streams[0].addmm_, read, first)]
            for i, place in enumerate(places):
                gates = self.gates[i, j, :, part]  # from finished rows and the bias; then the gates (B, 4 n)
                step += [
                    partial(gates.addmm_, place.inputs, weights[i]),
                    *cell_calls(gates, place.memory, place.outputs[:, units]),
                    partial(torch.addmm, streams[i], place.outputs[:, : units.stop], up[i], out=streams[i + 1]),
                ]
            step += [final.relu_, partial(relu_of, torch.addmm, net.last.bias[out], finals, last)]
            steps.append(step)
        return steps
