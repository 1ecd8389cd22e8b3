"""Cached sampling of a gated PixelCNN: each value costs its own arithmetic, nothing is computed twice.

The idea of Ramachandran et al. 2017 (arXiv:1704.06001): keep the activations that later pixels read. Ours goes further:

- The vertical stack does not know the row that it serves, so it runs once a row for all pixels, as two products a
  layer; what a row gives to later rows is added up at once (`pending`), so no older activation is kept. With what it
  gives to the horizontal stack, biases and context, the pre-activations of every pixel of the row are begun.
- What is left of a layer at one value is four in-place operations on preallocated buffers: the product with the pixel
  and its left neighbours, tanh, the gate, and the 1x1 with the residual.
- Activations of a row are stored by column modulo dilation: taps lie side by side, and dilation costs nothing.
- No operation is spent on a bias. Those of `expand` never enter the stream: every pre-activation is linear in the
  stream, so what the missing biases would add is known beforehand. The zeros left of the row miss them too.
- Masks are sliced away: the block-triangular weights of colour c read exactly the groups <= c, and the values and gates
  of a colour lie together, so three colours cost what one masked pixel would.
- Every view into the buffers is made once, at the start: at small widths Python is the cost.

Nothing in a row depends on which row it is, so the operations of one row can be captured as a CUDA graph and replayed.

B images, C channels, G colours in turn a pixel (1 if the head chains them), c = C / G values a step, L layers, p width,
W columns, k kernel, q = k // 2, d dilation of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nets.layers.masked import group_slices
from genlab.system.device import moved

if TYPE_CHECKING:
    from genlab.nets.causal.gated_pixelcnn import GatedPixelCNN


class LayerStep(NamedTuple):
    """Operands of one layer at one value: views into the buffers and weights, in the order of use."""

    begun: Tensor  # from the vertical stack and the bias; then pre-activation and tanh, this colour (B, 2n)
    taps: Tensor  # stream of the pixels to the left, and of this one, colours so far (B, q P + P')
    horizontal: Tensor  # (q P + P', 2n)
    value: Tensor  # first half of `begun` (B, n)
    opening: Tensor  # second half (B, n)
    gated: Tensor  # after the gate, this colour (B, n)
    stream: Tensor  # this colour (B, n)
    gates: Tensor  # after the gate, colours so far (B, P')
    expand: Tensor  # (P', n)
    into: Tensor  # stream of the next layer, this colour (B, n)


class ValueStep(NamedTuple):
    """Operands of one value of a row: layers and last layer."""

    previous: Tensor  # where the previous values belong in the input row (B, c)
    layers: list[LayerStep]
    stream: Tensor  # this colour (B, n)
    floor: Tensor  # minus the biases that the stream lacks (n,)
    relu: Tensor  # max(stream, floor), this colour (B, n)
    relus: Tensor  # colours so far (B, P')
    last: Tensor  # (P', D)
    bias: Tensor  # (D,)


class RowStep(NamedTuple):
    """Operands of one layer of the vertical stack at one row, in the order of use."""

    windows: Tensor  # the k columns around every pixel of the row that enters (W, B, k, c)
    window: Tensor  # the same, for the product (W, B, k, c)
    flat: Tensor  # (W B, k c)
    pending: Tensor  # what earlier rows give to this row and the next q d - 1 (q d, W B, 2p)
    weights: list[Tensor]  # what a row gives to itself, to the row d below, … (k c, 2p), q + 1 of them
    dilation: int
    bias: Tensor  # (2p,)
    link: Tensor  # (2p, 2p)
    link_bias: Tensor  # and of the horizontal stack (2p,)
    begun: Tensor  # pre-activations of the horizontal stack (W B, 2p)
    into: Tensor | None  # the row that enters the next layer (W, B, p)


class GatedPixelCNNState:
    """Buffers, weights as the steps read them, and the steps of a row. `t` is the step to come.

    With `prefix` (images (B, C, H, W), rows), the vertical stack passes over the known rows. It changes in place.
    `serial_from`: the step of a row from which one CPU thread does as well as several, 0 or 1 (then the work that is
    done once a row is large enough to share), or beyond the row.
    """

    def __init__(
        self,
        net: GatedPixelCNN,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.t, self.columns, self.put = 0, net.spec.width, net.values.put
        self.channels, self.colours = net.values.channels, net.spec.channels // net.step_channels
        width, depth = net.width, len(net.blocks)
        # As measured for the PixelCNN: small products gain nothing from a second core.
        row, step = 12 * depth * self.columns * batch * width**2, 4 * batch * width**2
        shared = device.type != "cpu" or step > 2**22
        self.serial_from = self.columns * self.colours if shared else int(row > 2**27)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=net.last.weight.dtype, device=device)

        layers, left = list(net.blocks), [layer.horizontal for layer in net.blocks]
        inputs = [layer.vertical.in_channels for layer in layers]
        taps = left[-1].reach // left[-1].dilation[1]
        biases = torch.stack([layer.expand.bias for layer in layers]).cumsum(0)
        self.lacking = [zeros(self.channels), *biases]  # what the stream lacks before each layer and the last (p,)
        self.slots = [Slots(self.columns, conv.dilation[1], taps) for conv in left]
        self.streams = [
            (-lack).expand(batch, slots.count, -1).contiguous()
            for slots, lack in zip(self.slots, self.lacking, strict=False)
        ]
        self.streams[0] = zeros(batch, self.slots[0].count, self.channels)  # the input row
        self.place = moved(torch.tensor([self.slots[0](j) for j in range(self.columns)]), device)
        self.stream = zeros(batch, width)  # after the last layer
        self.gates, self.relus = zeros(depth, batch, width), zeros(batch, width)
        self.begun = zeros(depth, self.columns, batch, 2 * width)  # values and gates of a colour together
        self.above = [
            zeros(self.columns + 2 * conv.reach, batch, c) for conv, c in zip(left, inputs, strict=True)
        ]  # the row that enters each layer of the vertical stack
        self.pending = [zeros(layer.reach, self.columns * batch, 2 * width) for layer in layers]

        self.order = moved(_colour_by_colour(width, self.colours), device)
        self.biases = net.biases(context)  # (B, 2p, h, w) or None; vertical, horizontal, layer by layer
        self.rows = _rows(net, self, batch)
        colours = [_steps(net, self, c) for c in range(self.colours)]
        self.steps = [step for pixel in zip(*colours, strict=True) for step in pixel]
        if prefix is not None and prefix[1] > 0:
            self._prefill(net, *prefix)

    def begin_row(self) -> None:
        """The vertical stack at the new row, and all that it gives to the horizontal stack at every pixel."""
        entering, margin = self.above[0], (len(self.above[0]) - self.columns) // 2
        newest = self.streams[0].index_select(1, self.place).transpose(0, 1)  # zeros before the first row
        entering[margin : margin + self.columns] = newest
        row, shape = self.t // len(self.steps), self.begun.shape[1:]
        for i, layer in enumerate(self.rows):
            layer.window.copy_(layer.windows)
            *weights, furthest = layer.weights
            a = torch.addmm(layer.pending[0], layer.flat, weights[0])
            for j, weight in enumerate(weights[1:], 1):
                layer.pending[layer.dilation * j].addmm_(layer.flat, weight)
            if len(layer.pending) > 1:
                layer.pending[:-1] = layer.pending[1:].clone()
            torch.addmm(layer.bias, layer.flat, furthest, out=layer.pending[-1])
            if (bias := self.biases[2 * i]) is not None:
                a.view(shape).add_(_of_row(bias, row))
            torch.addmm(layer.link_bias, a, layer.link, out=layer.begun)
            if layer.into is not None:
                value, opening = a.tanh_().view(shape).chunk(2, 2)
                torch.addcmul(value, value, opening, out=layer.into)
            if (bias := self.biases[2 * i + 1]) is not None:
                self.begun[i] += _of_row(bias, row)[..., self.order]

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        batch = len(index)
        for dim, buffers in (
            (0, (*self.streams, self.stream, self.relus)),
            (1, (self.gates,)),
            (2, (self.begun, *(p.view(len(p), self.columns, batch, -1) for p in self.pending))),
        ):
            for buffer in buffers:
                buffer.copy_(buffer.index_select(dim, index))
        self.biases = [None if bias is None else bias[index] for bias in self.biases]

    def _prefill(self, net: GatedPixelCNN, x: Tensor, rows: int) -> None:
        """Take in the first rows of x (B, C, H, W): the vertical stack over what the next rows read of them."""
        values = net.values(x[:, :, :rows])
        self.streams[0][:, self.place] = values[:, :, -1].transpose(1, 2)
        needed = sum(layer.reach for layer in net.blocks)  # newest rows that a layer reads
        v = F.pad(values, (0, 0, 1, -1))[:, :, -needed:]
        for i, (layer, pending) in enumerate(zip(net.blocks, self.pending, strict=True)):
            needed, reach = needed - layer.reach, layer.reach
            kept = min(needed, rows)
            lack = max(kept + reach - v.shape[2], 0)  # rows above the image
            v = F.pad(v, (reach, reach, lack, reach))[:, :, -(kept + 2 * reach) :]
            a = layer.vertical(v)  # of the newest rows, then what they give to the next
            pending.view(reach, self.columns, len(x), -1).copy_(a[:, :, kept:].permute(2, 3, 0, 1))
            if kept:
                a, bias = a[:, :, :kept], self.biases[2 * i]
                if bias is not None:
                    a = a + (bias if bias.shape[2] == 1 else bias[:, :, rows - kept : rows])
                value, opening = a.tanh().chunk(2, 1)
                v = torch.addcmul(value, value, opening)
        self.t = rows * len(self.steps)


class Slots:
    """Where a row keeps its columns so that the taps of a layer lie beside one another: by column modulo dilation.

    Each class of columns begins with `taps` slots for what lies left of the row.
    """

    def __init__(self, columns: int, dilation: int, taps: int) -> None:
        self.dilation, self.taps = dilation, taps
        self.length = taps + -(-columns // dilation)
        self.count = dilation * self.length

    def __call__(self, column: int) -> int:
        return column % self.dilation * self.length + self.taps + column // self.dilation


def advance(previous: Tensor | None, state: GatedPixelCNNState) -> Tensor:
    """One step: the previous values (B, c), None if the state has them -> features (B, D) of the next step."""
    column = state.t % len(state.steps)
    step = state.steps[column]
    if previous is not None:
        state.put(previous, step.previous)
    if column == 0:
        state.begin_row()
    state.t += 1
    addmm, addcmul = torch.addmm, torch.addcmul  # looked up once: a step is forty operations
    for begun, taps, horizontal, value, opening, gated, stream, gates, expand, into in step.layers:
        begun.addmm_(taps, horizontal).tanh_()
        addcmul(value, value, opening, out=gated)
        addmm(stream, gates, expand, out=into)
    torch.maximum(step.stream, step.floor, out=step.relu)
    return addmm(step.bias, step.relus, step.last).relu_()


def _rows(net: GatedPixelCNN, state: GatedPixelCNNState, batch: int) -> list[RowStep]:
    """The vertical stack at one row, layer by layer."""
    columns, width = state.columns, 2 * net.width
    kernel = net.blocks[0].vertical.kernel_size[1]
    windows: dict[int, Tensor] = {}  # layers take turns
    found = []
    for i, layer in enumerate(net.blocks):
        conv, d, above = layer.vertical, layer.vertical.dilation[1], state.above[i]
        c = conv.in_channels
        window = windows.setdefault(c, above.new_zeros(columns, batch, kernel, c))
        state.pending[i].copy_(conv.bias.detach())  # type: ignore[union-attr]
        found.append(
            RowStep(
                windows=above.as_strided(window.shape, (batch * c, c, d * batch * c, 1)),
                window=window,
                flat=window.view(columns * batch, kernel * c),
                pending=state.pending[i],
                weights=[w.permute(2, 1, 0).flatten(0, 1).contiguous() for w in conv.weight.detach().unbind(2)][::-1],
                dilation=d,
                bias=conv.bias.detach(),  # type: ignore[union-attr]
                link=layer.link.weight.detach()[state.order, :, 0, 0].T.contiguous(),
                link_bias=(layer.horizontal.bias.detach() + _missing(layer.horizontal, state.lacking[i]))[state.order],  # type: ignore[union-attr]
                begun=state.begun[i].view(-1, width),
                into=_inner(state.above[i + 1], columns) if i + 1 < len(net.blocks) else None,
            )
        )
    return found


def _steps(net: GatedPixelCNN, state: GatedPixelCNNState, colour: int) -> list[ValueStep]:
    """The steps of one colour in a row, one for each of the W columns."""
    values, channels = net.step_channels * net.values.width, state.channels
    mine, out = (group_slices(k, state.colours)[colour] for k in (net.width, net.out_width * state.colours))
    n, end = mine.stop - mine.start, mine.stop
    both = state.order[2 * mine.start : 2 * mine.stop]  # values and gates of this colour
    ends = [colour * values] + [end] * (len(net.blocks) - 1)  # channels of this pixel that a layer may read
    weights = [_left(layer.horizontal, both, stop) for layer, stop in zip(net.blocks, ends, strict=True)]
    expand = [layer.expand.masked_weight[mine, :end, 0, 0].T.contiguous() for layer in net.blocks]
    last = net.last.masked_weight[out, :, 0, 0].T[:end].contiguous()
    bias = net.last.bias[out] + (net.last.masked_weight[out, :, 0, 0] @ state.lacking[-1])
    nothing = state.stream.new_zeros(1, n)

    steps = []
    for j in range(state.columns):
        here = [slots(j) for slots in state.slots]
        streams = [stream[:, slot] for stream, slot in zip(state.streams, here, strict=True)] + [state.stream]
        layers = []
        for i, slots in enumerate(state.slots):
            c = state.streams[i].shape[2]
            begun = state.begun[i, j, :, 2 * mine.start : 2 * mine.stop]
            layers.append(
                LayerStep(
                    begun=begun,
                    taps=state.streams[i].flatten(1)[:, (here[i] - slots.taps) * c : here[i] * c + ends[i]],
                    horizontal=weights[i],
                    value=begun[:, :n],
                    opening=begun[:, n:],
                    gated=state.gates[i, :, mine],
                    stream=streams[i][:, mine] if i else nothing,
                    gates=state.gates[i, :, :end],
                    expand=expand[i],
                    into=streams[i + 1][:, mine],
                )
            )
        before = slice(colour * values - values, colour * values) if colour else slice(channels - values, channels)
        steps.append(
            ValueStep(
                previous=state.streams[0][:, here[0] if colour else state.slots[0]((j or state.columns) - 1), before],
                layers=layers,
                stream=state.stream[:, mine],
                floor=-state.lacking[-1][mine],
                relu=state.relus[:, mine],
                relus=state.relus[:, :end],
                last=last,
                bias=bias,
            )
        )
    return steps


def _colour_by_colour(width: int, colours: int) -> Tensor:
    """Channels (2p,) of a pre-activation, values then gates, in the order values and gates of each colour in turn."""
    pieces = [torch.arange(s.start, s.stop) for s in group_slices(width, colours)]
    return torch.cat([torch.cat([piece, piece + width]) for piece in pieces])


def _of_row(bias: Tensor, row: int) -> Tensor:
    """The row of a map (B, D, h, w) -> (w, B, D); a label's only row serves all."""
    return bias[:, :, min(row, bias.shape[2] - 1)].permute(2, 0, 1)


def _inner(padded: Tensor, columns: int) -> Tensor:
    """The columns of the image in (W + 2 margin, B, D)."""
    margin = (len(padded) - columns) // 2
    return padded[margin : margin + columns]


def _left(conv: nn.Conv2d, out: Tensor, stop: int) -> Tensor:
    """Weights of the output channels `out`: pixels to the left, then `stop` channels of the pixel itself."""
    weight = conv.masked_weight[out, :, 0]  # type: ignore[operator,index]  # (n, D, taps)
    left = weight if not conv.centre else weight[..., :-1]
    taps = [left.permute(2, 1, 0).flatten(0, 1)] + ([weight[:, :stop, -1].T] if conv.centre else [])
    return torch.cat(taps).contiguous()


def _missing(conv: nn.Conv2d, lacking: Tensor) -> Tensor:
    """What a convolution of the stream would add for what every pixel of it lacks (D,) -> (2p,)."""
    return conv.masked_weight.sum((2, 3)) @ lacking  # type: ignore[operator]
