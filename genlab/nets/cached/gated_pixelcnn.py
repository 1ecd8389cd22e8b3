"""Cache of a gated PixelCNN.

Beyond what all caches do (`base.py`):

- The vertical stack does not depend on the row that it serves, so it runs once a row for all pixels, as two products a
  layer. What a row gives to later rows is added up at once (`pending`), so no older activation is kept. What it gives
  to the horizontal stack, with biases and context, starts the pre-activations of every pixel of the row.
- What is left of a layer at one value is four operations: the product with the pixel and its left neighbours, tanh, the
  gate, and the 1x1 with the residual.
- Activations of a row are stored by column modulo dilation: taps lie side by side, and dilation costs nothing.
- No operation is spent on a bias. Those of `expand` never enter the stream: every pre-activation is linear in the
  stream, so what the missing biases would add is known beforehand. The zeros left of the row miss them too.
- Masks are sliced away: the block-triangular weights of colour c read exactly the groups <= c, and the values and gates
  of a colour lie together, so three colours cost what one masked pixel would.

B images, c values of a step, D features, L layers, p width, W columns, k kernel, q = k // 2, d dilation of a layer; n
for the part of p of one colour, P' for the colours so far.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.cached.base import Cache, pointwise_weight, row_weight
from genlab.nets.causal.gated_pixelcnn import GatedLayer, GatedPixelCNN
from genlab.system.device import moved


class VerticalLayer:
    """One layer of the vertical stack, a row at a time."""

    def __init__(self, cache: Cache, layer: GatedLayer, window: Tensor) -> None:
        """`window` (W, B, k, c) is scratch."""
        conv, (columns, batch, kernel, c) = layer.vertical, window.shape
        self.dilation = conv.dilation[1]
        entering = cache.zeros(columns + 2 * layer.reach, batch, c)  # the row that enters, padded
        self.entering = entering[layer.reach : layer.reach + columns]
        self.windows = entering.as_strided(window.shape, (batch * c, c, self.dilation * batch * c, 1))
        self.window, self.flat = window, window.view(columns * batch, kernel * c)
        self.bias = conv.bias.detach()  # type: ignore[union-attr]
        # What earlier rows and the bias give to this row and the next q d - 1 (q d, W B, 2p).
        self.pending = cache.buffer(layer.reach, columns, batch, len(self.bias), images=2).flatten(1, 2)
        self.pending.copy_(self.bias)
        # What a row gives to itself, to the row d below, … (k c, 2p), q + 1 of them.
        self.weights = [w.permute(2, 1, 0).flatten(0, 1).contiguous() for w in conv.weight.detach().unbind(2)][::-1]

    def run(self) -> Tensor:
        """Pre-activations of the row (W B, 2p)."""
        self.window.copy_(self.windows)
        own, *others, furthest = self.weights
        a = torch.addmm(self.pending[0], self.flat, own)
        for i, weight in enumerate(others, 1):
            self.pending[self.dilation * i].addmm_(self.flat, weight)
        if len(self.pending) > 1:
            self.pending[:-1] = self.pending[1:].clone()
        torch.addmm(self.bias, self.flat, furthest, out=self.pending[-1])
        return a


class LayerViews:
    """Weights and buffers of layer i as the steps of one colour read them; `columns`: those of every column."""

    def __init__(self, cache: GatedPixelCNNCache, i: int, colour: int, mine: slice) -> None:
        layer, columns, end = cache.net.blocks[i], range(cache.columns), mine.stop
        part = slice(2 * mine.start, 2 * end)  # values and gates of this colour
        own = end if i else colour * cache.step_width  # channels of this pixel that the layer may read
        line, c = cache.streams[i].flatten(1), cache.streams[i].shape[2]
        weight = layer.horizontal.masked_weight[cache.order[part], :, 0]  # (2n, D, taps)
        if not layer.horizontal.centre:
            weight = F.pad(weight, (0, 1))  # for a tap on the pixel itself
        self.horizontal = row_weight(weight, own)  # (q P + own, 2n)
        self.gated, self.gates = cache.gates[i, :, mine], cache.gates[i, :, :end]  # (B, n); colours so far (B, P')
        self.expand = pointwise_weight(layer.expand, mine, end)  # (P', n)
        begun = cache.begun[i, ..., part]
        views = (
            begun.unbind(),  # from the vertical stack and the bias; then pre-activation and tanh (B, 2n)
            *(half.unbind() for half in begun.chunk(2, 2)),  # its halves, value and opening (B, n)
            # The stream of the pixels to the left, and of this one the colours so far (B, q P + own).
            [line[:, (slot - cache.taps) * c : slot * c + own] for slot in cache.slots[i]],
            # The stream that is added to, and where the result goes (B, n).
            [cache.stream_at(i, j)[:, mine] if i else cache.zeros(1, end - mine.start) for j in columns],
            [cache.stream_at(i + 1, j)[:, mine] for j in columns],
        )
        self.columns = list(zip(*views, strict=True))


class ColourSteps:
    """The steps of one colour."""

    def __init__(self, cache: GatedPixelCNNCache, colour: int) -> None:
        net, lacking = cache.net, cache.lacking[-1]
        mine, out = cache.slices(colour, net.width, net.out_width * cache.colours)
        self.layers = [LayerViews(cache, i, colour, mine) for i in range(len(net.blocks))]
        self.stream, self.floor = cache.stream[:, mine], -lacking[mine]  # this colour (B, n), (n,)
        self.relu, self.relus = cache.relus[:, mine], cache.relus[:, : mine.stop]  # (B, n); colours so far (B, P')
        self.last = pointwise_weight(net.last, out, mine.stop)  # (P', D)
        self.bias = net.last.bias[out] + net.last.masked_weight[out, :, 0, 0] @ lacking

    def run(self, column: int) -> Tensor:
        """The step at a column -> features (B, D)."""
        addmm, addcmul = torch.addmm, torch.addcmul  # looked up once: a step is forty operations
        for layer in self.layers:
            begun, value, opening, taps, stream, into = layer.columns[column]
            begun.addmm_(taps, layer.horizontal).tanh_()
            addcmul(value, value, opening, out=layer.gated)
            addmm(stream, layer.gates, layer.expand, out=into)
        torch.maximum(self.stream, self.floor, out=self.relu)
        return addmm(self.bias, self.relus, self.last).relu_()


class GatedPixelCNNCache(Cache):
    """Streams of the horizontal stack in the current row; what the vertical stack gives to this row and later ones."""

    rows_alike = True
    colour_steps = ColourSteps
    net: GatedPixelCNN

    def allocate(self) -> None:
        layers, batch, columns, width = list(self.net.blocks), self.batch, self.columns, self.net.width
        kernel = layers[0].vertical.kernel_size[1]
        self.taps = kernel // 2  # on pixels to the left
        biases = torch.stack([layer.expand.bias for layer in layers]).cumsum(0)
        self.lacking = [self.zeros(self.channels), *biases]  # what the stream lacks before each layer and the last
        self.slots = [slots(columns, layer.vertical.dilation[1], self.taps) for layer in layers]
        # The input row, then the stream before every other layer; what is left of the row lacks the biases as well.
        self.streams = [
            self.buffer(batch, max(places) + 1, len(lack), images=0).sub_(lack)
            for places, lack in zip(self.slots, self.lacking[:-1], strict=True)
        ]
        self.place = moved(torch.tensor(self.slots[0]), self.device)
        self.stream = self.buffer(batch, width, images=0)  # after the last layer
        self.gates = self.buffer(len(layers), batch, width, images=1)
        self.relus = self.buffer(batch, width, images=0)
        self.begun = self.buffer(len(layers), columns, batch, 2 * width, images=2)
        self.begun_rows = self.begun.flatten(1, 2).unbind()
        windows = {c: self.zeros(columns, batch, kernel, c) for c in (self.channels, width)}  # layers take turns
        self.vertical = [VerticalLayer(self, layer, windows[layer.vertical.in_channels]) for layer in layers]
        self.order = self.colour_by_colour(2, width)  # values and gates of each colour in turn
        self.link = [layer.link.weight[self.order, :, 0, 0].T.contiguous() for layer in layers]  # (2p, 2p)
        convs = [layer.horizontal for layer in layers]
        self.begun_bias = [  # with what the convolution would add for the biases that the stream lacks
            (conv.bias + conv.masked_weight.sum((2, 3)) @ lack)[self.order]
            for conv, lack in zip(convs, self.lacking[:-1], strict=True)
        ]
        self.inputs = [
            self.streams[0][:, slot, colour * self.step_width : (colour + 1) * self.step_width]
            for slot in self.slots[0]
            for colour in range(self.colours)
        ]

    def work(self) -> tuple[int, int]:
        product = 4 * self.batch * self.net.width**2
        return product, 3 * len(self.net.blocks) * self.columns * product

    def begin_row(self) -> None:
        """The vertical stack at the new row, and all that it gives to the horizontal stack at every pixel."""
        self.vertical[0].entering.copy_(self.streams[0].index_select(1, self.place).transpose(0, 1))
        biases = self.contexts[0].at(self.row)
        shape = self.begun.shape[1:]
        for i, layer in enumerate(self.vertical):
            a = layer.run()
            if biases:
                a.view(shape).add_(biases[2 * i])
            torch.addmm(self.begun_bias[i], a, self.link[i], out=self.begun_rows[i])
            if biases:
                self.begun[i] += biases[2 * i + 1][..., self.order]
            if i + 1 < len(self.vertical):
                value, opening = a.tanh_().view(shape).chunk(2, 2)
                torch.addcmul(value, value, opening, out=self.vertical[i + 1].entering)

    def prefill(self, x: Tensor) -> None:
        """The vertical stack over what the next rows read of the known ones."""
        net, rows = self.net, x.shape[2]
        values, biases = net.values(x), self.contexts[0].until(rows)
        self.streams[0][:, self.place] = values[:, :, -1].transpose(1, 2)
        needed = sum(layer.reach for layer in net.blocks)  # newest rows that a layer reads
        v = F.pad(values, (0, 0, 1, -1))[:, :, -needed:]
        for layer, vertical, bias in zip(net.blocks, self.vertical, biases[::2], strict=True):
            needed, reach = needed - layer.reach, layer.reach
            kept = min(needed, rows)
            lack = max(kept + reach - v.shape[2], 0)  # rows above the image
            v = F.pad(v, (reach, reach, lack, reach))[:, :, -(kept + 2 * reach) :]
            a = layer.vertical(v)  # of the newest rows, then what they give to the next
            vertical.pending.unflatten(1, (self.columns, -1)).copy_(a[:, :, kept:].permute(2, 3, 0, 1))
            if kept:
                a = a[:, :, :kept]
                if bias is not None:
                    a = a + bias[:, :, -kept:]
                value, opening = a.tanh().chunk(2, 1)
                v = torch.addcmul(value, value, opening)

    def stream_at(self, i: int, column: int) -> Tensor:
        """The stream before layer i, or after the last one, at a column (B, p)."""
        return self.streams[i][:, self.slots[i][column]] if i < len(self.streams) else self.stream


def slots(columns: int, dilation: int, taps: int) -> list[int]:
    """Where a row keeps its columns so that the taps of a layer lie beside one another: by column modulo dilation.

    Each class of columns begins with `taps` slots for what lies left of the row.
    """
    length = taps + -(-columns // dilation)  # slots of a class
    return [column % dilation * length + taps + column // dilation for column in range(columns)]
