"""Cached sampling of the recurrent nets: what row_lstm_cache.py and diagonal_bilstm_cache.py share.

- All that comes from finished rows enters once a row, as batched products over all layers, written to where the gates
  of every pixel then add the rest in place: what the layer reads of its own row, one product of (B, k) with (k, 4 n).
- What is left of a layer at one value is eight operations on preallocated buffers: two products and six for the cell.
  Masks are sliced away: the weights of colour c read exactly the groups <= c.
- No operation is spent on what is known before the row begins but joins the stream behind a layer, such as the bias of
  its 1x1 convolution: the stream carries all of that from the start. Where a layer reads the stream, it carries the
  excess of what this layer and later ones add; what its product makes of the excess is taken off the gates beforehand.
- Every view into the buffers is made once, at the start: at small widths Python is the cost.

Nothing in a row depends on which row it is, so the operations of one row can be captured as a CUDA graph and replayed.

B images, C channels, G colours in turn a pixel (1 if the head chains them), c = C / G values a step, L layers, S stream
width, U = S // 2 units, n those of a colour, p = kernel // 2 of the first layer, W columns. The gates of a pixel are
4 U numbers: in the cache colour by colour, so that those of a colour lie together; within it o, f, i, g.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.causal.pixelrnn import PixelRNN
from genlab.nets.layers.masked import MaskedConv2d, group_slices


class LayerStep(NamedTuple):
    """Operands of one layer at one value: views into the buffers and weights, in the order of use."""

    gates: Tensor  # from finished rows and the bias; then the gates, this colour (B, 4 n)
    inputs: Tensor  # what the gates read of the current row (B, k)
    weight: Tensor  # (k, 4 n)
    sigmoid: Tensor  # of the gates, o, f and i (B, 3 n)
    o: Tensor  # the next four (B, n) each
    f: Tensor
    i: Tensor
    g: Tensor
    memory: Tensor  # of the pixel that comes before in the LSTM; then of this one (B, n)
    h: Tensor  # output, this colour (B, n)
    outputs: Tensor  # output, colours so far (B, N)
    up: Tensor  # (N, s)
    stream: Tensor  # that the layer reads, this colour (B, s)
    out: Tensor  # that the next one reads


class ValueStep(NamedTuple):
    """Operands of one value of a row: first layer, LSTM layers, last layer."""

    previous: Tensor  # where the previous values belong in the input row (B, c)
    stream: Tensor  # from the rows above and the bias; then the residual stream, this colour (B, s)
    left: Tensor  # input values to the left, and the colours so far (B, p C + C')
    first: Tensor  # (p C + C', s)
    layers: list[LayerStep]
    final: Tensor  # stream behind the last layer, this colour (B, s)
    finals: Tensor  # and colours so far (B, S')
    bias: Tensor  # (D,)
    last: Tensor  # (S', D)


class PixelRNNState:
    """Buffers, weights as the steps read them, and the steps of a row. `t` is the step to come.

    With `prefix` (images (B, C, H, W), rows), one forward pass fills in the known rows. The state changes in place.
    `serial_from`: the step of a row from which one CPU thread does as well as several, 0 or 1 (then the work that is
    done once a row is large enough to share), or beyond the row.

    A subclass allocates its buffers and says where things are (`_allocate`), begins a row (`_begin`) and keeps what
    later rows read of known ones (`_keep`). It makes `gates` (L, W, B, 4 U).
    """

    gates: Tensor

    def __init__(
        self,
        net: PixelRNN,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.t, self.pad = 0, net.first.kernel_size[0] // 2
        self.batch, self.columns, self.channels = batch, net.spec.width, net.values.channels
        self.depth, self.width, self.units = len(net.blocks), net.width, net.units
        self.like = net.first.weight
        wide, half = group_slices(net.width, net.groups), group_slices(net.units, net.groups)
        each = torch.arange(4 * net.units, device=device).view(4, -1)
        self.by_colour = torch.cat([each[:, units].flatten() for units in half])
        row, step = self.depth * self.columns * batch * 12 * net.units**2, batch * net.width * 4 * net.units
        shared = device.type != "cpu" or step > 2**22  # as measured for a PixelCNN
        self.serial_from = self.columns * net.groups if shared else int(row > 2**27)

        self.row = self.zeros(batch, (self.pad + self.columns) * self.channels)  # input, a pixel's colours together
        self.rows = self.zeros(batch, self.channels, self.pad, self.columns)  # input of the rows above
        self.final = self.zeros(batch, net.width)
        self.put = net.values.put
        self.first_weight, self.first_bias = net.first.masked_weight[:, :, : self.pad], net.first.bias.detach()
        self.biases = net.biases(context)  # of the first layer and the LSTM layers, (B, D, h, w) or None
        self.of_rows = self._by_row()
        self._allocate(net)
        colours = [self._steps(net, *at) for at in zip(range(net.groups), wide, half, strict=True)]
        self.steps = [step for pixel in zip(*colours, strict=True) for step in pixel]
        if prefix is not None and prefix[1] > 0:
            self._prefill(net, *prefix)

    def zeros(self, *shape: int) -> Tensor:
        """A buffer like the net's weights."""
        return torch.zeros(shape, dtype=self.like.dtype, device=self.like.device)

    def _allocate(self, net: PixelRNN) -> None:
        raise NotImplementedError

    def _begin(self, first: Tensor) -> None:
        """What the first layer gets from above (W, B, S) is known: the new row of the LSTM layers."""
        raise NotImplementedError

    def _keep(self, layer: int, block: Any, h: Tensor, bias: Any) -> Tensor:
        """Run a layer on known rows of its stream (B, S, H', W), keep what the next row reads -> its output."""
        raise NotImplementedError

    def _places(self, layer: int, column: int, wide: slice, units: slice) -> tuple[Tensor, ...]:
        """Where things are: `inputs`, `memory`, outputs of the pixel (B, U), stream of the pixel (B, S)."""
        raise NotImplementedError

    def _weight(self, block: Any, gates: Tensor, stop: int) -> Tensor:
        """Weights (k, 4 n) of the gates with those numbers for `inputs`, of whose pixel `stop` channels count."""
        raise NotImplementedError

    def _buffers(self) -> tuple[tuple[int, tuple[Tensor, ...]], ...]:
        """Buffers of the subclass by which of their dimensions is the batch."""
        raise NotImplementedError

    def begin_row(self) -> None:
        """All that the new row reads of the rows above it, for every pixel of the row and every layer at once."""
        if self.t:
            newest = self.values().transpose(1, 2)
            self.rows.copy_(torch.cat([self.rows[:, :, 1:], newest[:, :, None]], 2))
        first = F.conv2d(F.pad(self.rows, (self.pad, self.pad)), self.first_weight, self.first_bias)
        first = first[:, :, 0].permute(2, 0, 1)
        self._begin(first if self.of_rows is None else first + self.of_rows[0][self.place(self.t)])

    def values(self) -> Tensor:
        """What is read of the newest row (B, W, C E)."""
        return self.row.view(self.batch, -1, self.channels)[:, self.pad :]

    def place(self, t: int) -> int:
        """The row of a context that serves step t: a label's only row serves all."""
        return min(t // len(self.steps), len(self.of_rows[0]) - 1) if self.of_rows else 0

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        for dim, buffers in ((0, (self.row, self.rows, self.final)), *self._buffers()):
            for buffer in buffers:
                buffer.copy_(buffer.index_select(dim, index))
        self.biases = [None if bias is None else bias[index] for bias in self.biases]
        self.of_rows = self._by_row()

    def _by_row(self) -> tuple[Tensor, Tensor] | None:
        """Biases of a context (B, D, h, w) -> for the first layer (h, w, B, S) and the gates (h, L, w, B, gates)."""
        maps = [bias.permute(2, 3, 0, 1).contiguous() for bias in self.biases if bias is not None]
        return (maps[0], torch.stack(maps[1:], 1)) if maps else None

    def _prefill(self, net: PixelRNN, x: Tensor, rows: int) -> None:
        """Take in the first rows of x (B, C, H, W): a forward pass; a layer keeps what the next row reads of it."""
        values = net.values(x[:, :, :rows])
        self.values().copy_(values[:, :, -1].transpose(1, 2))
        seen = values[:, :, max(rows - 1 - self.pad, 0) : rows - 1]  # the newest row joins when the next one begins
        if seen.shape[2]:
            self.rows[:, :, -seen.shape[2] :] = seen
        first, *biases = [bias if bias is None or bias.shape[2] == 1 else bias[:, :, :rows] for bias in self.biases]
        h = net.first(values)
        if first is not None:
            h = h + first
        for layer, (block, bias) in enumerate(zip(net.blocks, net.gate_biases(values, biases), strict=True)):
            h = self._keep(layer, block, h, bias)
        self.t = rows * len(self.steps)

    def _steps(self, net: PixelRNN, colour: int, wide: slice, units: slice) -> list[ValueStep]:
        """The steps of one colour in a row, one for each of the W columns."""
        values, channels, n = net.step_channels * net.values.width, self.channels, units.stop - units.start
        numbers = self.by_colour[4 * units.start : 4 * units.stop]
        weights = [self._weight(block, numbers, wide.stop) for block in net.blocks]
        up = [block.up.masked_weight[wide, : units.stop, 0, 0].T.contiguous() for block in net.blocks]  # type: ignore[attr-defined]
        out = group_slices(net.out_width * net.groups, net.groups)[colour]
        first = _row_weight(net.first, wide, colour * values)
        last = net.last.masked_weight[out, : wide.stop, 0, 0].T.contiguous()
        steps = []
        for j in range(self.columns):
            places = [self._places(layer, j, wide, units) for layer in range(self.depth)]
            streams = [stream[:, wide] for *_, stream in places] + [self.final[:, wide]]
            layers = []
            for layer, (inputs, memory, outputs, _) in enumerate(places):
                gates = self.gates[layer, j, :, 4 * units.start : 4 * units.stop]
                o, f, i, g = gates.split(n, 1)
                operands = gates, inputs, weights[layer], gates[:, : 3 * n], o, f, i, g, memory
                behind = outputs[:, units], outputs[:, : units.stop], up[layer], *streams[layer : layer + 2]
                layers.append(LayerStep(*operands, *behind))
            here = (self.pad + j) * channels + colour * values
            steps.append(
                ValueStep(
                    previous=self.row[:, here - values : here] if here > self.pad * channels else self.row[:, -values:],
                    stream=streams[0],
                    left=self.row[:, j * channels : here],
                    first=first,
                    layers=layers,
                    final=streams[-1],
                    finals=self.final[:, : wide.stop],
                    bias=net.last.bias[out],
                    last=last,
                )
            )
        return steps


def advance(previous: Tensor | None, state: PixelRNNState) -> Tensor:
    """One step: the previous values (B, c), None if the state has them -> features (B, D) of the next step."""
    column = state.t % len(state.steps)
    step = state.steps[column]
    if previous is not None:
        state.put(previous, step.previous)
    if column == 0:
        state.begin_row()
    state.t += 1
    step.stream.addmm_(step.left, step.first)
    tanh, addmm = torch.tanh, torch.addmm  # looked up once: a step is a hundred operations
    for gates, inputs, weight, sigmoid, o, f, i, g, memory, h, outputs, up, stream, out in step.layers:
        gates.addmm_(inputs, weight)
        sigmoid.sigmoid_()
        g.tanh_()
        memory.mul_(f).addcmul_(i, g)
        tanh(memory, out=h).mul_(o)
        addmm(stream, outputs, up, out=out)
    step.final.relu_()
    return addmm(step.bias, step.finals, step.last).relu_()


def _row_weight(conv: MaskedConv2d, out: slice, stop: int) -> Tensor:
    """Weights on the current row of the output channels `out`: pixels to the left, then `stop` channels of this one."""
    pad = conv.kernel_size[0] // 2
    weight = conv.masked_weight[out, :, pad]  # (n, D, k)
    left = weight[:, :, :pad].permute(2, 1, 0).flatten(0, 1)
    return torch.cat([left, weight[:, :stop, pad].T])
