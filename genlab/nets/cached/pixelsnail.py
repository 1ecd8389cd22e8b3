"""Cached sampling of a PixelSNAIL: each pixel costs its own arithmetic, nothing is computed twice.

- A 2x2 convolution reads four pixels. What the two of the row above add is known for all of a row when it begins, and
  enters as one batched product over all convolutions and pixels, written to where each pixel adds the rest in place:
  one product with the left pixel and its own.
- Keys and values of a pixel need its colours, hence wait for the next step; but nothing in them depends on a later
  block, so those of all blocks are computed at once: a dozen operations a pixel, however deep the net.
- Every gated block is the same eight operations: concat_elu is two on one buffer, biases ride along in the products.
- Keys lie with pixels last, values with channels last, as the two products of a single query read them fastest. A
  query meets all pixels up to the end of the row, through views made once a row. Keys have one channel more, which
  every query reads with weight 1: it is 0 where a pixel is known and -1e30 where not, so the mask costs no operation.
  Values of unknown pixels are zeros: the first pixel, which weighs them alone, gets the net's zeros.
- A stream lies between the colours and the place of its pixel: what the net joins is joined already.

B images, C channels, L blocks, N gated 2x2 blocks in all, F stream width, M = C + F + 2 and Q = F + 2 channels joined
for keys and for queries, K and V channels of all keys (that one included) and all values, h heads, W columns, T pixels.
A context with places gives every column biases of its own (w = W), otherwise one serves all (w = 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nets.cached.gated_step import Gated, above, compute, gated_step, matrix, pair, stacked

if TYPE_CHECKING:
    from genlab.nets.causal.pixelsnail import Block, PixelSNAIL


UNKNOWN = -1e30  # added to the score of a pixel that is not known yet: its weight is exactly 0


class BlockStep(NamedTuple):
    """Operands of one block at one column."""

    convs: list[Gated]
    query: Gated
    bias: Tensor  # (K,); the next two with the scale of attention
    found: Tensor  # (B, Q)
    weight: Tensor  # (Q, K)
    out: Gated


class PixelSNAILState:
    """Buffers, weights as the steps read them, and the steps of a row. `t` is the step to come.

    With `prefix` (images (B, C, H, W), rows), one forward pass fills in the known rows. The state changes in place.
    `serial_from`: as in PixelCNNState.
    """

    def __init__(
        self,
        net: PixelSNAIL,
        batch: int,
        device: torch.device,
        prefix: tuple[Tensor, int] | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.net, self.t, self.batch, self.columns = net, 0, batch, net.spec.width
        self.maps = net.biases(context)  # for every gated block (B, n, h, w) or None
        one, width, columns = net.blocks[0], net.width, net.spec.width
        channels, depth, layers = net.values.channels, len(net.blocks), len(one.convs)
        heads, pixels, keys = one.heads, net.spec.height * columns, one.keys // one.heads + 1
        row, step = 12 * layers * depth * columns * batch * width**2, 8 * batch * width**2
        shared = device.type != "cpu" or step > 2**22
        self.serial_from = columns if shared else int(row > 2**27)

        zeros = partial(torch.zeros, dtype=net.place.dtype, device=device)
        self.signs, self.put = zeros(2, 1), net.values.put
        self.signs[0], self.signs[1] = 1, -1
        self.places = net.place.flatten(1).T.contiguous()  # (T, 2)
        self.row = zeros(batch, columns + 1, channels)  # the image's row, after a pixel of zeros
        self.stem = zeros(columns, batch, width)
        self.joined = zeros(depth + 1, batch, channels + width + 2)  # of one pixel: colours, stream, place
        self.first = zeros(layers * depth, batch, columns + 1, 2 * width)  # read by the 2x2 convolutions of this row
        self.second = zeros(layers * depth, batch, columns + 1, 2 * width)
        self.hidden = zeros(layers * depth, columns, batch, width)
        self.gated = zeros(layers * depth, columns, batch, 2 * width)
        self.keys = zeros(depth, batch, heads, keys, pixels)
        self.keys[:, :, :, -1] = UNKNOWN
        self.values = zeros(depth, batch, heads, pixels, one.values // heads)
        self.found = zeros(depth, batch, heads * keys + one.values)  # keys and values of one pixel
        self.asked = zeros(batch, heads * keys)
        self.scores, self.weights = zeros(2, batch * heads * pixels)
        self.answer = zeros(batch * heads, 1, one.values // heads)
        self.found_keys, self.found_values = _by_head(self.found, heads, keys)
        self.colours, self.place = self.joined[:depth, :, :channels], self.joined[..., -2:]
        self.placed = any(m is not None and m[0, 0].numel() > 1 for m in self.maps)  # biases of their own for rows
        wide = columns if self.placed else 1
        sizes = zip((layers, 1, 1, 1), (width, channels + width + 2, width + 2, width), strict=True)
        self.bases = [zeros(wide, n * depth, batch, 2 * k) for n, k in sizes]  # biases of all gates

        convs = [conv for block in net.blocks for conv in block.convs]
        self.from_left = net.left.normed_weight[:, :channels, 1, 0].T.contiguous()
        self.above = [above([c.first for c in convs]), above([c.second for c in convs])]
        self.first_bias = torch.stack([c.first.bias for c in convs])[:, None, None]
        self.memory = _memory_steps(self)
        weights, biases = stacked([block.to_memory for block in net.blocks])
        self.to_memory, self.to_memory_bias = _spread(weights, heads, one.keys), _spread(biases, heads, one.keys)
        self.steps = _steps(self)
        self._take_biases(0)
        if prefix is not None and prefix[1] > 0:
            self._prefill(prefix[0][:, :, : prefix[1]], context)

    def remember(self, previous: Tensor) -> None:
        """Take in the newest pixel (B, C): its keys and values in all blocks."""
        t = self.t - 1
        here = self.row[:, 1 + t % self.columns]
        self.put(previous, here)
        self.colours.copy_(here)
        memory = self.memory[t % len(self.memory)]
        compute(memory, self.signs, torch.baddbmm)
        torch.baddbmm(self.to_memory_bias, memory.out, self.to_memory, out=self.found)
        self.keys.select(4, t).copy_(self.found_keys)
        self.values.select(3, t).copy_(self.found_values)

    def begin_row(self) -> None:
        """All that the new row reads of the row above it, for every pixel of the row and every convolution at once."""
        row = self.t // self.columns
        raw = self.row[:, None, 1:].permute(0, 3, 1, 2)
        raw = torch.cat([raw, torch.zeros_like(raw)][not row :], 2)  # colours of the new row enter pixel by pixel
        self.stem.copy_(self.net.stem(raw)[:, :, -1].permute(2, 0, 1))
        if self.placed:
            self._take_biases(row)
        self.hidden.copy_(self.first_bias)
        self.gated.copy_(self.bases[0].transpose(0, 1))
        for read, weights, out in zip((self.first, self.second), self.above, (self.hidden, self.gated), strict=True):
            finished = read.transpose(1, 2).contiguous()  # (N, W + 1, B, 2 F)
            for d, weight in enumerate(weights if row else ()):
                out.flatten(1, 2).baddbmm_(finished[:, d : d + self.columns].flatten(1, 2), weight)
        end = (row + 1) * self.columns
        self.key_rows, self.value_rows = self.keys.flatten(1, 2)[..., :end], self.values.flatten(1, 2)[:, :, :end]
        heads = len(self.answer)
        self.score_row = self.scores[: heads * end].view(heads, 1, end)
        self.weight_row = self.weights[: heads * end].view(heads, 1, end)

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        for dim, buffers in (
            (0, (self.row,)),
            (1, (self.stem, self.joined, self.first, self.second, self.keys, self.values)),
            (2, (self.hidden, self.gated)),
        ):
            for buffer in buffers:
                buffer.copy_(buffer.index_select(dim, index))
        self.maps = [None if m is None else m[index] for m in self.maps]
        self._take_biases(max(self.t - 1, 0) // self.columns)

    def _take_biases(self, row: int) -> None:
        """Biases of all gates, and what a context adds to them in that row."""
        maps = iter(self.maps)
        for i, block in enumerate(self.net.blocks):
            convs = [(0, i * len(block.convs) + k, conv) for k, conv in enumerate(block.convs)]
            for kind, k, gated in (*convs, (1, i, block.memory), (2, i, block.query), (3, i, block.out)):
                base, bias = next(maps), gated.second.bias
                if base is not None:
                    bias = bias + base[:, :, min(row, base.shape[2] - 1)].permute(2, 0, 1)  # a label's row serves all
                self.bases[kind][:, k] = bias

    def _prefill(self, x: Tensor, context: Tensor | None) -> None:
        """Take in known rows (B, C, rows, W): a forward pass of them that leaves what later rows read."""
        net, rows = self.net, x.shape[2]
        found: list[Tensor] = []

        def keep(buffer: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: nn.Module, read: tuple[Tensor, ...]) -> None:
                buffer[:, 1:] = read[0][:, :, -1].transpose(1, 2)

            return hook

        convs = [conv for block in net.blocks for conv in block.convs]
        hooks = [c.first.register_forward_pre_hook(keep(b)) for c, b in zip(convs, self.first, strict=True)]
        hooks += [c.second.register_forward_pre_hook(keep(b)) for c, b in zip(convs, self.second, strict=True)]
        hooks += [b.to_memory.register_forward_hook(lambda _, __, out: found.append(out)) for b in net.blocks]
        try:
            net.forward(x, context if context is None or context.shape[2] == 1 else context[:, :, :rows])
        finally:
            for hook in hooks:
                hook.remove()
        self.t = rows * self.columns
        memory = torch.stack(found).flatten(3).transpose(2, 3)  # (L, B, T, K + V)
        heads, keys = self.keys.shape[2:4]
        known, values = _by_head(_spread(memory, heads, heads * (keys - 1)), heads, keys)  # (L, B, T, h, n)
        self.keys[..., : self.t] = known.permute(0, 1, 3, 4, 2)
        self.values[..., : self.t, :] = values.transpose(2, 3)
        self.row[:, 1:] = net.values(x[:, :, -1:])[:, :, 0].transpose(1, 2)


def advance(previous: Tensor | None, state: PixelSNAILState) -> Tensor:
    """One step: the previous pixel (B, C), None if the state has it -> features (B, F) of the next pixel."""
    t, column = state.t, state.t % state.columns
    if previous is not None:
        state.remember(previous)
    if column == 0:
        state.begin_row()
    state.t += 1
    signs, addmm, bmm, softmax = state.signs, torch.addmm, torch.bmm, torch.softmax  # looked up once
    asked, answer, scores, weights = state.asked, state.answer, state.score_row, state.weight_row
    question = asked.view(len(answer), 1, -1)
    state.place.copy_(state.places[t])
    blocks, stream = state.steps[column]
    addmm(state.stem[column], state.row[:, column], state.from_left, out=stream)
    for block, keys, values in zip(blocks, state.key_rows, state.value_rows, strict=True):
        convs, query, bias, found, weight, out = block
        for conv in convs:
            compute(conv, signs)
        compute(query, signs)
        addmm(bias, found, weight, out=asked)
        bmm(question, keys, out=scores)
        softmax(scores, 2, out=weights)
        bmm(weights, values, out=answer)
        compute(out, signs)
    return F.elu(out.out)


def _spread(x: Tensor, heads: int, keys: int) -> Tensor:
    """Room for the channel that says what is known: (…, keys [+ V]) -> (…, keys + heads [+ V]), zero there."""
    known, rest = x[..., :keys].unflatten(-1, (heads, -1)), x[..., keys:]
    return torch.cat([F.pad(known, (0, 1)).flatten(-2), rest], -1).contiguous()


def _by_head(found: Tensor, heads: int, keys: int) -> tuple[Tensor, Tensor]:
    """Keys and values (…, heads * keys + V) -> views (…, heads, keys) and (…, heads, V / heads)."""
    return found[..., : heads * keys].unflatten(-1, (heads, -1)), found[..., heads * keys :].unflatten(-1, (heads, -1))


def _steps(state: PixelSNAILState) -> list[tuple[list[BlockStep], Tensor]]:
    """For each of the W columns the steps of all blocks, and where the stream begins."""
    streams = state.joined[..., state.row.shape[2] : -2]
    width = streams.shape[2]
    pairs = [b.flatten(2).unfold(2, 4 * width, 2 * width).unbind(2) for b in (state.first, state.second)]
    tails = [_tail(state, i, block) for i, block in enumerate(state.net.blocks)]
    convs = [conv for block in state.net.blocks for conv in block.convs]
    weights = [(pair(c.first), pair(c.second)) for c in convs]
    each = len(convs) // len(tails)
    steps = []
    for column, (reads, hidden_reads) in enumerate(zip(*pairs, strict=True)):
        hidden, gated = state.hidden[:, column].unbind(), state.gated[:, column].unbind()
        operands = []
        for i, (first, second) in enumerate(weights):
            stream, read, hidden_read = streams[i // each], reads[i], hidden_reads[i]
            products = (hidden[i], read, first), (gated[i], hidden_read, second)
            own, hidden_own = read[:, 2 * width :], hidden_read[:, 2 * width :]
            operands.append(
                gated_step(stream, own, products[0], hidden[i], hidden_own, products[1], gated[i], stream, stream)
            )
        blocks = [tail[column % len(tail)] for tail in tails]
        steps.append(
            ([block._replace(convs=operands[i * each : (i + 1) * each]) for i, block in enumerate(blocks)], streams[0])
        )
    return steps


def _tail(state: PixelSNAILState, i: int, block: Block) -> list[BlockStep]:
    """Block i after its convolutions, for every column with biases of its own."""
    channels, width, batch = state.row.shape[2], state.net.width, state.batch
    joined, stream, following = state.joined[i, :, channels:], *state.joined[i : i + 2, :, channels:-2]
    queries = width + 2
    # What the last gated block reads: concat_elu of stream and place, as for the query (no weight for the place), and
    # that of the answer.
    read = joined.new_zeros(batch, 2 * queries + 2 * block.values)
    last = joined.new_zeros(read.shape[1], width)
    last[:width], last[queries : queries + width] = matrix(block.out.first).split(width)
    last[2 * queries :] = matrix(block.out.beside)  # type: ignore[arg-type]
    last_bias = block.out.first.bias + block.out.beside.bias  # type: ignore[union-attr]
    scale = (block.keys // block.heads) ** -0.5

    def room(n: int) -> tuple[Tensor, Tensor, Tensor]:
        return joined.new_zeros(batch, n), joined.new_zeros(batch, 2 * n), joined.new_zeros(batch, 2 * n)

    asking, taking = room(queries), room(width)
    asked, answer = read[:, : 2 * queries], state.answer.view(batch, -1)
    ask = block.query.first.bias, asked, matrix(block.query.first)
    take, answered = (last_bias, read, last), read[:, 2 * queries :]
    ask_more, take_more = matrix(block.query.second), matrix(block.out.second)
    bias, weight = (_spread(x * scale, block.heads, block.keys) for x in (block.to_query.bias, matrix(block.to_query)))
    bias.unflatten(0, (block.heads, -1))[:, -1] = 1
    steps = []
    for query_base, out_base in zip(state.bases[2][:, i], state.bases[3][:, i], strict=True):
        second = query_base, asking[1], ask_more
        query = gated_step(joined, asked, ask, asking[0], asking[1], second, asking[2], joined, asking[0])
        second = out_base, taking[1], take_more
        out = gated_step(answer, answered, take, taking[0], taking[1], second, taking[2], stream, following)
        steps.append(BlockStep([], query, bias, query.out, weight, out))
    return steps


def _memory_steps(state: PixelSNAILState) -> list[Gated]:
    """The gated blocks that keys and values come from, those of all blocks at once; for every column with biases."""
    joined = state.joined[:-1]
    depth, batch, wide = joined.shape
    inner, hidden_inner, gated = joined.new_zeros(3, depth, batch, 2 * wide)
    hidden = torch.zeros_like(joined)
    blocks = [block.memory for block in state.net.blocks]
    (first, bias), (second, _) = stacked([b.first for b in blocks]), stacked([b.second for b in blocks])
    products = [((bias, inner, first), (base, hidden_inner, second)) for base in state.bases[1]]
    return [gated_step(joined, inner, a, hidden, hidden_inner, b, gated, joined, hidden) for a, b in products]
