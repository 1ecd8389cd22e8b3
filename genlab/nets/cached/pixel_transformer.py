"""Cached sampling of a pixel transformer: a step computes one token, and reads the keys and values of the others.

- Keys lie in memory as (B heads, d, T) and values as (B heads, T, d): the two products of a query with what it attends
  to are then batched products with nothing to move, over the filled part alone.
- A block is 17 operations, nearly all in place: gains of the norms, the scale of the scores and the width that a mean
  divides by are folded into the weights; a norm is a length and a division, its epsilon one more entry of the stream;
  queries, keys and values are one product, both rotations one product of complex numbers.
- Local attention reads its window only. In one dimension that is a piece of the cache. In two, a window is gathered at
  the first pixel of every query block of a row, for all layers at once, and grows by a token each step.
- What the tokens get from the rows above, and a context, comes once a row.

B images, C channels, H x W pixels, T = H * W tokens, D features, L blocks, d dimensions of a head, p = kernel // 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.layers.attention import Full, Local

if TYPE_CHECKING:
    from genlab.nets.causal.pixel_transformer import Block, PixelTransformer


class Sequence:
    """Keys (L, B heads, d, T) and values (L, B heads, T, d) in raster order; every token attends to a piece of it."""

    def __init__(self, attend: Full | Local, keys: Tensor, values: Tensor) -> None:
        self.attend, self.keys, self.values = attend, keys, values

    def at(self, t: int) -> tuple[tuple[Tensor, ...], ...]:
        """Of every layer, where key and value of token t belong, and the keys and values up to and including them."""
        first = self.attend.oldest(t)
        window = slice(first, t + 1)
        return (
            self.keys[..., t].unbind(),
            self.values[:, :, t].unbind(),
            self.keys[..., window].unbind(),
            self.values[:, :, window].unbind(),
        )


class Windows(Sequence):
    """The same for rectangles: what the tokens of one row of a query block attend to, gathered when the first comes."""

    def __init__(self, attend: Local, keys: Tensor, values: Tensor) -> None:
        super().__init__(attend, keys, values)
        self.local = attend
        (h, w), columns = attend.block, attend.columns
        self.image_keys = keys.unflatten(3, (-1, columns))  # (L, B heads, d, H, W)
        self.image_values = values.unflatten(2, (-1, columns))
        size = (attend.above + h) * min(w + 2 * attend.side, columns)
        self.window_keys = keys.new_zeros(*keys.shape[:3], size)
        self.window_values = values.new_zeros(*values.shape[:2], size, values.shape[3])
        self.begun, self.known = 0, 0  # the first token of the piece of a row, and the tokens of the window before it

    def at(self, t: int) -> tuple[tuple[Tensor, ...], ...]:
        """As above."""
        if t % self.local.columns % self.local.block[1] == 0:
            self.gather(t)
        here = self.known + t - self.begun
        return (
            self.window_keys[..., here].unbind(),
            self.window_values[:, :, here].unbind(),
            self.window_keys[..., : here + 1].unbind(),
            self.window_values[:, :, : here + 1].unbind(),
        )

    def gather(self, t: int) -> None:
        """Keep what the window has that is new; then fill it with what token t attends to, itself aside."""
        self.keep(t)
        top, left, right = self.local.reach(t)
        top, left, (row, column) = max(top, 0), max(left, 0), divmod(t, self.local.columns)
        n = 0
        for rows, columns in ((slice(top, row), slice(left, right)), (slice(row, row + 1), slice(left, column))):
            keys, values = self.image_keys[..., rows, columns], self.image_values[:, :, rows, columns]
            tokens = keys.shape[3] * keys.shape[4]
            self.window_keys[..., n : n + tokens].view(keys.shape).copy_(keys)
            self.window_values[:, :, n : n + tokens].view(values.shape).copy_(values)
            n += tokens
        self.begun, self.known = t, n

    def keep(self, t: int) -> None:
        """Move the tokens from `begun` up to t out of the window."""
        new = slice(self.known, self.known + t - self.begun)
        self.keys[..., self.begun : t] = self.window_keys[..., new]
        self.values[:, :, self.begun : t] = self.window_values[:, :, new]


class TransformerState:
    """Buffers and the weights as the steps read them. `t` is the step to come.

    With `prefix` (images (B, C, H, W), rows), one forward pass fills in the known rows. The state changes in place.
    `serial_from`: the step of a row from which one CPU thread does as well as several: the first, or beyond the row.
    """

    def __init__(
        self,
        net: PixelTransformer,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> None:
        spec, width, heads, depth = net.spec, net.width, net.heads, len(net.blocks)
        tokens, d = spec.height * spec.width, width // heads
        self.net, self.context, self.columns, self.t = net, context, spec.width, 0
        self.pad, self.put = net.first.kernel_size[0] // 2, net.values.put
        shared = device.type != "cpu" or batch * width * max(4 * width, tokens) > 2**21
        self.serial_from = spec.width if shared else 0

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=net.first.weight.dtype, device=device)

        self.image = zeros(batch, spec.height + self.pad, spec.width + 2 * self.pad, net.values.channels)
        self.keys, self.values = zeros(depth, batch * heads, d, tokens), zeros(depth, batch * heads, tokens, d)
        attend = net.attend
        rectangles = isinstance(attend, Local) and attend.columns > 1
        self.cache = (Windows if rectangles else Sequence)(attend, self.keys, self.values)  # type: ignore[arg-type]

        # The stream of every pixel of a row, and its epsilon: (length of both)^2 = D (mean h^2 + eps).
        self.stream = zeros(spec.width, batch, width + 1)
        self.stream[..., width] = (net.norm.eps * width) ** 0.5  # type: ignore[operator]
        self.streams = list(zip(self.stream.unbind(), self.stream[..., :width].unbind(), strict=True))
        self.length, self.normed = zeros(batch, 1), zeros(batch, width)
        self.qkv, self.qk, self.up = zeros(batch, 3 * width), zeros(2, batch, width), zeros(batch, 4 * width)
        self.attended = zeros(batch * heads, 1, d)
        # Views: complex pairs before and after the rotation; what a query, a key, a value and the result look like.
        self.pairs = torch.view_as_complex(self.qkv[:, : 2 * width].unflatten(1, (2, heads, d // 2, 2)))
        self.turned = torch.view_as_complex(self.qk.unflatten(2, (heads, d // 2, 2))).transpose(0, 1)
        self.query, self.key = self.qk[0].view(-1, 1, d), self.qk[1].view(-1, d)
        self.value, self.result = self.qkv[:, 2 * width :].unflatten(1, (heads, d)), self.attended.view(batch, width)
        self.rotations = torch.view_as_complex(net.table).unbind()  # (d / 2,) each

        self.above_weight = net.first.masked_weight[:, :, : self.pad]
        self.left_weight = net.first.masked_weight[:, :, self.pad, : self.pad].permute(2, 1, 0).flatten(0, 1)
        self.qkv_scale = zeros(3 * width) + 1
        self.qkv_scale[:width] = d**-0.5  # the scale of the scores rides on the queries
        self.layers = [_weights(block, self.qkv_scale) for block in net.blocks]
        self.gain = net.norm.weight * width**0.5
        self.biases: list[list[tuple[Tensor | None, ...]]] = []  # per column (or one for all) and layer
        if prefix is not None and prefix[1] > 0:
            self._prefill(*prefix)

    def begin_row(self) -> None:
        """What the new row's tokens get from the pixels above, from their places and from the context."""
        row, p = self.t // self.columns, self.pad
        above = self.image[:, row : row + p].permute(0, 3, 1, 2)
        h = F.conv2d(above, self.above_weight, self.net.first.bias)[:, :, 0]  # (B, D, W)
        tokens = self.stream[..., :-1]
        torch.add(h.permute(2, 0, 1), (self.net.rows[row] + self.net.columns)[:, None], out=tokens)
        if row and self.net.wrap is not None:
            tokens[0].addmm_(self.image[:, row + p - 1, p + self.columns - 1], self.net.wrap.weight.T)
        here = self.image[:, row + p].flatten(1)
        self.lefts = here.unfold(1, p * self.image.shape[3], self.image.shape[3]).unbind(1)
        self.pixels = self.image[:, row + p, p:].unbind(1)
        if not self.biases or (self.context is not None and self.context.shape[2] > 1):
            self.biases = self._row_biases(row)

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        self.image.copy_(self.image[index])
        self.stream.copy_(self.stream[:, index])
        caches = [self.keys, self.values]
        if isinstance(self.cache, Windows):
            caches += [self.cache.window_keys, self.cache.window_values]
        for cache in caches:
            heads = cache.unflatten(1, (len(index), -1))
            heads.copy_(heads[:, index])
        if self.context is not None:
            self.context = self.context[index]
            self.biases = [[tuple(b if b is None else b[index] for b in pair) for pair in c] for c in self.biases]

    def _row_biases(self, row: int) -> list[list[tuple[Tensor | None, ...]]]:
        """For every column, or once for all, the biases of every layer: (B, 3D) and (B, 4D), or None twice."""
        context = self.context
        if context is not None and context.shape[2] > 1:
            context = context[:, :, row : row + 1]
        layers = self.net.layer_biases(context)
        columns = 1 if context is None else context.shape[3]
        scaled = [(None if qkv is None else qkv * self.qkv_scale, up) for qkv, up in layers]
        return [
            [tuple(None if b is None else b[:, min(j, b.shape[1] - 1)].contiguous() for b in pair) for pair in scaled]
            for j in range(columns)
        ]

    def _prefill(self, x: Tensor, rows: int) -> None:
        """Take in the first rows of x (B, C, H, W): keys and values of their tokens, by one forward pass."""
        net, tokens = self.net, rows * self.columns
        known = net.values(x[:, :, :rows])
        self.image[:, self.pad : self.pad + rows, self.pad : self.pad + self.columns] = known.permute(0, 2, 3, 1)
        context = self.context
        if context is not None and context.shape[2] > 1:
            context = context[:, :, :rows]
        h, table = net.embed(x[:, :, :rows]), net.table[:tokens]
        layers = zip(net.blocks, net.layer_biases(context), self.keys, self.values, strict=True)
        for i, (block, biases, keys, values) in enumerate(layers):
            q, k, v = block.queries_keys_values(h, table, biases[0])
            keys[..., :tokens] = k.flatten(0, 1).transpose(1, 2)
            values[:, :tokens] = v.flatten(0, 1)
            if i + 1 < len(net.blocks):  # of the last block, later tokens read nothing else
                h = block.rest(h, net.attend(q, k, v), biases[1])
        self.t = tokens
        if isinstance(self.cache, Windows):
            self.cache.begun = tokens


def advance(previous: Tensor | None, state: TransformerState) -> Tensor:
    """One step: the previous values (B, c), None if the state has them -> features (B, D) of the next step."""
    t, column = state.t, state.t % state.columns
    if previous is not None:
        state.put(previous, state.pixels[(t - 1) % state.columns])
    if column == 0:
        state.begin_row()
    state.t += 1
    stream, h = state.streams[column]
    h.addmm_(state.lefts[column], state.left_weight)
    rotation, biases = state.rotations[t], state.biases[min(column, len(state.biases) - 1)]
    length, normed, qkv, up = state.length, state.normed, state.qkv, state.up
    pairs, turned, query, key, value = state.pairs, state.turned, state.query, state.key, state.value
    attended, result = state.attended, state.result
    norm, div, mul, bmm = torch.linalg.vector_norm, torch.div, torch.mul, torch.bmm  # looked up once
    for weights, bias, new_key, new_value, keys, values in zip(state.layers, biases, *state.cache.at(t), strict=True):
        norm(stream, dim=1, keepdim=True, out=length)
        div(h, length, out=normed)
        product(bias[0], normed, weights[0], qkv)
        mul(pairs, rotation, out=turned)
        new_key.copy_(key)
        new_value.view(value.shape).copy_(value)
        bmm(bmm(query, keys).softmax(2), values, out=attended)
        h.addmm_(result, weights[1])
        norm(stream, dim=1, keepdim=True, out=length)
        div(h, length, out=normed)
        product(bias[1], normed, weights[2], up)
        up.relu_()
        h.addmm_(mul(up, up, out=up), weights[3])
    norm(stream, dim=1, keepdim=True, out=length)
    return div(h, length).mul_(state.gain)


def product(bias: Tensor | None, x: Tensor, weight: Tensor, out: Tensor) -> None:
    """x @ weight, plus a bias of the context's if there is one."""
    if bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)


def _weights(block: Block, qkv_scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For products (B, k) @ (k, n) with a stream divided by its length: of qkv, out, up, down."""
    width = block.out.in_features
    qkv, up = (
        linear.weight.T * (norm.weight * width**0.5)[:, None]
        for linear, norm in ((block.qkv, block.norm), (block.up, block.norm_up))
    )
    qkv = qkv * qkv_scale
    return qkv.contiguous(), block.out.weight.T.contiguous(), up.contiguous(), block.down.weight.T.contiguous()
