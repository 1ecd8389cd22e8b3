"""The cache of the pixel transformer: a step computes one token and reads the keys and values of the others.

- Keys are stored as (B heads, d, T) and values as (B heads, T, d). The two products of a query with what it attends to
  are then batched products of a part of the memory, and nothing has to be moved.
- A block is 17 operations. Gains of the norms, the scale of the scores and the width that a mean divides by are part of
  the weights. A norm is a length and a division; its epsilon is one more entry of the stream. Queries, keys and values
  are one product, and both rotations are one product of complex numbers.
- Local attention reads its window only. In one dimension that is a part of the memory. In two dimensions a window is
  gathered at the first pixel of every query block of a row, for all layers at once, and grows by a token each step.

B images, D features, L blocks, d dimensions of a head, W columns, T tokens (pixels in raster order).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.nets.cached.base import Cache
from genlab.nets.cached.first_layer import FirstLayer
from genlab.nets.causal.pixel_transformer import Block, PixelTransformer
from genlab.nets.layers.attention import Local


class Memory:
    """Keys and values of all tokens, as views (L, B heads, d, T). A token attends to those from `attend.oldest` on."""

    def __init__(self, cache: Cache, net: PixelTransformer) -> None:
        self.attend = net.attend
        self.image = self._room(cache, net, net.spec.height * net.spec.width)  # keys, values

    def _room(self, cache: Cache, net: PixelTransformer, tokens: int) -> tuple[Tensor, Tensor]:
        size, d = (len(net.blocks), cache.batch, net.heads), net.width // net.heads
        keys, values = (cache.buffer(*size, *shape, images=1) for shape in ((d, tokens), (tokens, d)))
        return keys.flatten(1, 2), values.flatten(1, 2).mT

    def at(self, t: int) -> tuple[tuple[Tensor, ...], ...]:
        """Where key and value of token t belong, and the keys and values that it attends to: each for all layers."""
        return self._views(*self.image, t, self.attend.oldest(t))

    @staticmethod
    def _views(keys: Tensor, values: Tensor, t: int, first: int) -> tuple[tuple[Tensor, ...], ...]:
        read_keys, read_values = keys[..., first : t + 1], values[..., first : t + 1].mT
        return keys[..., t].unbind(), values[..., t].unbind(), read_keys.unbind(), read_values.unbind()


class WindowMemory(Memory):
    """The same for rectangles: what a row of a query block attends to is gathered in a window at its first token."""

    attend: Local

    def __init__(self, cache: Cache, net: PixelTransformer) -> None:
        super().__init__(cache, net)
        (h, w), self.columns = self.attend.block, self.attend.columns
        size = (self.attend.above + h) * min(w + 2 * self.attend.side, self.columns)
        self.window = self._room(cache, net, size)
        self.start, self.known = 0, 0  # the first token of the row of a block, and the tokens in the window before it

    def at(self, t: int) -> tuple[tuple[Tensor, ...], ...]:
        if t % self.columns % self.attend.block[1] == 0:
            self.gather(t)
        return self._views(*self.window, self.known + t - self.start, 0)

    def gather(self, t: int) -> None:
        """Store what is new in the window; then fill it with what token t attends to, itself excluded."""
        top, left, right = self.attend.reach(t)
        top, left, (row, column) = max(top, 0), max(left, 0), divmod(t, self.columns)
        for image, window in zip(self.image, self.window, strict=True):
            image[..., self.start : t] = window[..., self.known : self.known + t - self.start]
            rows = image.unflatten(3, (-1, self.columns))  # (L, B heads, d, H, W)
            above, beside = rows[..., top:row, left:right], rows[..., row, left:column]
            n = above[0, 0, 0].numel()
            window[..., :n].view(above.shape).copy_(above)
            window[..., n : n + column - left] = beside
        self.start, self.known = t, n + column - left


class Layer:
    """Weights of a block for products (B, k) @ (k, n). Those behind a norm include its gain."""

    def __init__(self, block: Block, bias: Tensor | None, qkv_scale: Tensor) -> None:
        """`bias` (B, 7 D): what a context adds. `qkv_scale` (3 D,): factors of queries, keys and values."""
        width = block.out.in_features
        qkv, up = (
            linear.weight.T * (norm.weight * width**0.5)[:, None]
            for linear, norm in ((block.qkv, block.norm), (block.up, block.norm_up))
        )
        self.qkv, self.up = (qkv * qkv_scale).contiguous(), up.contiguous()  # (D, 3 D), (D, 4 D)
        self.out, self.down = block.out.weight.T.contiguous(), block.down.weight.T.contiguous()  # (D, D), (4 D, D)
        self.qkv_bias = None if bias is None else bias[:, : 3 * width]
        self.up_bias = None if bias is None else bias[:, 3 * width :]


class PixelTransformerCache(Cache):
    """Keys and values of all tokens so far, and what the tokens of the current row get from the rows above."""

    net: PixelTransformer

    def allocate(self) -> None:
        net, batch, width = self.net, self.batch, self.net.width
        heads, d = net.heads, net.width // net.heads
        self.first = FirstLayer(self, net.first)
        self.inputs, self.left_weight = self.first.inputs, self.first.row_weight(slice(None), 0)
        rectangles = isinstance(net.attend, Local) and net.attend.columns > 1
        self.memory = (WindowMemory if rectangles else Memory)(self, net)
        self.tokens = self.buffer(self.columns, batch, width, images=1)  # without what the pixels to the left give
        # The stream of a pixel and, as its last entry, its epsilon: (length of both)^2 = D (mean h^2 + eps).
        self.stream, self.length = self.zeros(batch, width + 1), self.zeros(batch, 1)
        self.stream[:, width] = (net.norm.eps * width) ** 0.5  # type: ignore[operator]
        self.h, self.gain = self.stream[:, :width], net.norm.weight * width**0.5
        self.rotations = torch.view_as_complex(net.table).unbind()
        self.normed, self.inner = self.zeros(batch, width), self.zeros(batch, 4 * width)
        self.qkv, qk = self.zeros(batch, 3 * width), self.zeros(2, batch, width)
        self.attended = self.zeros(batch * heads, 1, d)
        # Views: complex pairs before and after rotation; query, key, value and result as attention has them.
        self.pairs = torch.view_as_complex(self.qkv[:, : 2 * width].unflatten(1, (2, heads, d // 2, 2)))
        self.rotated = torch.view_as_complex(qk.unflatten(2, (heads, d // 2, 2))).transpose(0, 1)
        self.query, self.key = qk[0].view(-1, 1, d), qk[1].view(-1, d)
        self.value, self.result = self.qkv[:, 2 * width :].unflatten(1, (heads, d)), self.attended.view(batch, width)
        self.qkv_scale = self.zeros(3 * width) + 1
        self.qkv_scale[:width] = d**-0.5  # the scale of the scores is part of the queries
        # What a context adds to queries, keys and values and to the first map of the network, (w, L, B, 3 D + 4 D).
        biases: Any = len(net.blocks) * [None]  # of every block (B, 3 D + 4 D)
        if (context := self.contexts[0].context) is not None:
            self.biases = self.buffer(context.shape[3], len(net.blocks), batch, 7 * width, images=2)
            biases = self.bias = self.biases[0] if context.shape[3] == 1 else torch.zeros_like(self.biases[0])
        self.layers = [Layer(block, bias, self.qkv_scale) for block, bias in zip(net.blocks, biases, strict=True)]

    def work(self) -> tuple[int, int]:
        return 2 * self.batch * self.net.width * max(4 * self.net.width, len(self.rotations)), 0

    def begin_row(self) -> None:
        """What the tokens get from the pixels above and from their places; what a context adds to the layers."""
        net = self.net
        torch.add(self.first.begin_row(), (net.rows[self.row] + net.columns)[:, None], out=self.tokens)
        if self.row and net.wrap is not None:
            self.tokens[0].addmm_(self.inputs[-1], net.wrap.weight.T)
        if (maps := self.contexts[0].at(self.row)) is not None:
            pairs = zip(maps[::2], maps[1::2], strict=True)
            self.biases.copy_(torch.stack([torch.cat([qkv * self.qkv_scale, up], 2) for qkv, up in pairs], 1))

    def make_steps(self, colour: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        own_biases = self.contexts[0].context is not None and len(self.biases) > 1
        biases = self.biases.unbind() if own_biases else self.columns * [None]
        return list(zip(self.tokens, self.first.reads(0), biases, strict=True))

    def compute(self, step: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        token, read, bias = step
        torch.addmm(token, read, self.left_weight, out=self.h)
        if bias is not None:
            self.bias.copy_(bias)
        norm, div, mul, bmm = torch.linalg.vector_norm, torch.div, torch.mul, torch.bmm  # looked up once
        rotation, memory = self.rotations[self.t - 1], self.memory.at(self.t - 1)
        stream, h, length, normed, qkv, inner = self.stream, self.h, self.length, self.normed, self.qkv, self.inner
        pairs, rotated, query, key, value = self.pairs, self.rotated, self.query, self.key, self.value
        attended, result = self.attended, self.result
        for layer, new_key, new_value, keys, values in zip(self.layers, *memory, strict=True):
            norm(stream, dim=1, keepdim=True, out=length)
            div(h, length, out=normed)
            _product(layer.qkv_bias, normed, layer.qkv, qkv)
            mul(pairs, rotation, out=rotated)
            new_key.copy_(key)
            new_value.view(value.shape).copy_(value)
            bmm(bmm(query, keys).softmax(2), values, out=attended)
            h.addmm_(result, layer.out)
            norm(stream, dim=1, keepdim=True, out=length)
            div(h, length, out=normed)
            _product(layer.up_bias, normed, layer.up, inner)
            inner.relu_()
            h.addmm_(mul(inner, inner, out=inner), layer.down)
        norm(stream, dim=1, keepdim=True, out=length)
        return div(h, length).mul_(self.gain)

    def prefill(self, x: Tensor) -> None:
        """A forward pass that keeps the keys and values of the known tokens."""
        net, memory, rows, t = self.net, self.memory, x.shape[2], x.shape[2] * self.columns
        self.first.prefill(net.values(x))
        context = self.contexts[0].context
        h, all_biases = net.embed(x), net.layer_biases(None if context is None else context[:, :, :rows])
        for i, (block, biases) in enumerate(zip(net.blocks, all_biases, strict=True)):
            q, k, v = block.queries_keys_values(h, net.table[:t], biases[0])
            for kept, x in zip(memory.image, (k, v), strict=True):
                kept[i, ..., :t] = x.flatten(0, 1).mT
            if i + 1 < len(net.blocks):  # of the last block, later tokens read nothing else
                h = block.rest(h, net.attend(q, k, v), biases[1])
        if isinstance(memory, WindowMemory):
            memory.start = t


def _product(bias: Tensor | None, x: Tensor, weight: Tensor, out: Tensor) -> None:
    """x @ weight, plus the bias of a context if there is one."""
    if bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)
