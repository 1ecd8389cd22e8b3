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

from functools import partial

import torch
from torch import Tensor

from genlab.nets.cached.base import Cache
from genlab.nets.cached.calls import Call, run
from genlab.nets.cached.first_layer import FirstLayer
from genlab.nets.causal.pixel_transformer import Block, PixelTransformer
from genlab.nets.layers.attention import Local


class Memory:
    """Keys (L, B heads, d, T) and values (L, B heads, T, d) of all tokens; each attends to those from some token on."""

    def __init__(self, cache: Cache, net: PixelTransformer) -> None:
        self.attend = net.attend
        self.keys, self.values = self._room(cache, net, net.spec.height * net.spec.width)

    def _room(self, cache: Cache, net: PixelTransformer, tokens: int) -> tuple[Tensor, Tensor]:
        size, d = (len(net.blocks), cache.batch, net.heads), net.width // net.heads
        keys, values = (cache.buffer(*size, *shape, images=1) for shape in ((d, tokens), (tokens, d)))
        return keys.flatten(1, 2), values.flatten(1, 2)

    def at(self, t: int) -> tuple[tuple[Tensor, ...], ...]:
        """Where key and value of token t belong, and the keys and values that it attends to: each for all layers."""
        return self._views(self.keys, self.values, t, self.attend.oldest(t))

    @staticmethod
    def _views(keys: Tensor, values: Tensor, t: int, first: int) -> tuple[tuple[Tensor, ...], ...]:
        part = slice(first, t + 1)
        views = keys[..., t], values[:, :, t], keys[..., part], values[:, :, part]
        return tuple(view.unbind() for view in views)


class WindowMemory(Memory):
    """The same for rectangles: what a row of a query block attends to is gathered in a window at its first token."""

    attend: Local

    def __init__(self, cache: Cache, net: PixelTransformer) -> None:
        super().__init__(cache, net)
        (h, w), self.columns = self.attend.block, self.attend.columns
        size = (self.attend.above + h) * min(w + 2 * self.attend.side, self.columns)
        self.window_keys, self.window_values = self._room(cache, net, size)
        self.start, self.known = 0, 0  # the first token of the row of a block, and the tokens in the window before it

    def at(self, t: int) -> tuple[tuple[Tensor, ...], ...]:
        """As in the base class."""
        if t % self.columns % self.attend.block[1] == 0:
            self.gather(t)
        return self._views(self.window_keys, self.window_values, self.known + t - self.start, 0)

    def gather(self, t: int) -> None:
        """Store what is new in the window; then fill it with what token t attends to, itself excluded."""
        new = slice(self.known, self.known + t - self.start)
        self.keys[..., self.start : t] = self.window_keys[..., new]
        self.values[:, :, self.start : t] = self.window_values[:, :, new]
        image_keys = self.keys.unflatten(3, (-1, self.columns))  # (L, B heads, d, H, W)
        image_values = self.values.unflatten(2, (-1, self.columns))
        top, left, right = self.attend.reach(t)
        top, left, (row, column) = max(top, 0), max(left, 0), divmod(t, self.columns)
        n = 0
        for rows, columns in ((slice(top, row), slice(left, right)), (slice(row, row + 1), slice(left, column))):
            keys, values = image_keys[..., rows, columns], image_values[:, :, rows, columns]
            tokens = keys.shape[3] * keys.shape[4]
            self.window_keys[..., n : n + tokens].view(keys.shape).copy_(keys)
            self.window_values[:, :, n : n + tokens].view(values.shape).copy_(values)
            n += tokens
        self.start, self.known = t, n


class PixelTransformerCache(Cache):
    """Keys and values of all tokens so far, and what the tokens of the current row get from the rows above."""

    net: PixelTransformer

    def allocate(self) -> None:
        """As in the base class."""
        net, batch, width = self.net, self.batch, self.net.width
        heads, d = net.heads, net.width // net.heads
        self.first = FirstLayer(self, net.first)
        self.inputs = self.first.inputs
        rectangles = isinstance(net.attend, Local) and net.attend.columns > 1
        self.memory = (WindowMemory if rectangles else Memory)(self, net)
        self.tokens = self.buffer(self.columns, batch, width, images=1)  # without what the pixels to the left give
        # The stream of a pixel and, as its last entry, its epsilon: (length of both)^2 = D (mean h^2 + eps).
        self.stream, self.length = self.zeros(batch, width + 1), self.zeros(batch, 1)
        self.stream[:, width] = (net.norm.eps * width) ** 0.5  # type: ignore[operator]
        self.h, self.gain = self.stream[:, :width], net.norm.weight * width**0.5
        self.rotations, self.rotation = (
            torch.view_as_complex(net.table).unbind(),
            torch.view_as_complex(net.table[0] * 0),
        )
        self.qkv, self.rotated = self.zeros(batch, 3 * width), self.zeros(2, batch, width)
        self.attended = self.zeros(batch * heads, 1, d)
        self.query, self.key = self.rotated[0].view(-1, 1, d), self.rotated[1].view(-1, d)
        self.value = self.qkv[:, 2 * width :].unflatten(1, (heads, d))
        self.qkv_scale = self.zeros(3 * width) + 1
        self.qkv_scale[:width] = d**-0.5  # the scale of the scores is part of the queries
        # What a context adds to queries, keys and values and to the first map of the network, (w, L, B, 3 D + 4 D).
        context = self.contexts[0].context
        if context is not None:
            self.biases = self.buffer(context.shape[3], len(net.blocks), batch, 7 * width, images=2)
            self.bias = self.biases[0] if context.shape[3] == 1 else torch.zeros_like(self.biases[0])
        self.layers = [
            self._layer_calls(block, None if context is None else self.bias[i]) for i, block in enumerate(net.blocks)
        ]

    def work(self) -> tuple[int, int]:
        """As in the base class; the first layer is too small to count."""
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

    def make_steps(self, colour: int) -> list[list[Call]]:
        """As in the base class: the token of every column."""
        weight = self.first.row_weight(slice(None), 0)
        steps: list[list[Call]] = [
            [partial(torch.addmm, token, read, weight, out=self.h)]
            for token, read in zip(self.tokens, self.first.reads(0), strict=True)
        ]
        context = self.contexts[0].context
        if context is not None and context.shape[3] > 1:
            for step, bias in zip(steps, self.biases, strict=True):
                step.append(partial(self.bias.copy_, bias))
        return steps

    def compute(self, step: list[Call]) -> Tensor:
        """As in the base class."""
        run(step)
        t, query, key, value, attended, bmm = self.t - 1, self.query, self.key, self.value, self.attended, torch.bmm
        self.rotation.copy_(self.rotations[t])
        for (before, after), new_key, new_value, keys, values in zip(self.layers, *self.memory.at(t), strict=True):
            run(before)
            new_key.copy_(key)
            new_value.view(value.shape).copy_(value)
            bmm(bmm(query, keys).softmax(2), values, out=attended)
            run(after)
        torch.linalg.vector_norm(self.stream, dim=1, keepdim=True, out=self.length)
        return torch.div(self.h, self.length).mul_(self.gain)

    def prefill(self, x: Tensor) -> None:
        """A forward pass that keeps the keys and values of the known tokens."""
        net, memory, rows, t = self.net, self.memory, x.shape[2], x.shape[2] * self.columns
        self.first.prefill(net.values(x))
        context = self.contexts[0].context
        h, all_biases = net.embed(x), net.layer_biases(None if context is None else context[:, :, :rows])
        for i, (block, biases) in enumerate(zip(net.blocks, all_biases, strict=True)):
            q, k, v = block.queries_keys_values(h, net.table[:t], biases[0])
            memory.keys[i, ..., :t] = k.flatten(0, 1).transpose(1, 2)
            memory.values[i, :, :t] = v.flatten(0, 1)
            if i + 1 < len(net.blocks):  # of the last block, later tokens read nothing else
                h = block.rest(h, net.attend(q, k, v), biases[1])
        if isinstance(memory, WindowMemory):
            memory.start = t

    def _norm_calls(self, out: Tensor) -> list[Call]:
        """The stream divided by its length; the gain is part of the weights that read it."""
        length = partial(torch.linalg.vector_norm, self.stream, dim=1, keepdim=True, out=self.length)
        return [length, partial(torch.div, self.h, self.length, out=out)]

    def _layer_calls(self, block: Block, bias: Tensor | None) -> tuple[list[Call], list[Call]]:
        """A block before and after attention. `bias` (B, 7 D): of a context."""
        width, heads = self.net.width, block.heads
        # Weights for products (B, k) @ (k, n); those behind a norm include its gain.
        qkv, up = (
            linear.weight.T * (norm.weight * width**0.5)[:, None]
            for linear, norm in ((block.qkv, block.norm), (block.up, block.norm_up))
        )
        qkv, up = (qkv * self.qkv_scale).contiguous(), up.contiguous()
        out, down = block.out.weight.T.contiguous(), block.down.weight.T.contiguous()
        normed, inner = self.zeros(self.batch, width), self.zeros(self.batch, 4 * width)
        qkv_bias, up_bias = (None, None) if bias is None else bias.split([3 * width, 4 * width], 1)
        pairs = torch.view_as_complex(self.qkv[:, : 2 * width].unflatten(1, (2, heads, -1, 2)))
        rotated = torch.view_as_complex(self.rotated.unflatten(2, (heads, -1, 2))).transpose(0, 1)
        before: list[Call] = [
            *self._norm_calls(normed),
            _product(qkv_bias, normed, qkv, self.qkv),
            partial(torch.mul, pairs, self.rotation, out=rotated),
        ]
        after: list[Call] = [
            partial(self.h.addmm_, self.attended.view(self.batch, width), out),
            *self._norm_calls(normed),
            _product(up_bias, normed, up, inner),
            inner.relu_,
            partial(torch.mul, inner, inner, out=inner),
            partial(self.h.addmm_, inner, down),
        ]
        return before, after


def _product(bias: Tensor | None, x: Tensor, weight: Tensor, out: Tensor) -> Call:
    """x @ weight, plus the bias of a context if there is one."""
    if bias is None:
        return partial(torch.mm, x, weight, out=out)
    return partial(torch.addmm, bias, x, weight, out=out)
