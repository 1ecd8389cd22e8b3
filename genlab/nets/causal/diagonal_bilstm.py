"""Diagonal BiLSTM (van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv:1601.06759, sec. 3.2): LSTMs along diagonals.

Every layer has two LSTMs, one that starts in the upper left corner and one that starts in the upper right. The state of
a pixel reads the states of the pixel above and of the pixel before it in its row. So all pixels of a diagonal can be
computed at once: H + W - 1 diagonals one after the other, both directions together. The map of the leftward LSTM is
moved down one row before the two maps are added, so that no pixel sees what is to its right in its own row. Every pixel
sees all pixels before it.

Ours differs in three ways.
- The paper skews the map to H x (H + W - 1). Ours puts the pixels in the order of their diagonals instead. There are
  then no cells without a pixel, and nothing to compute or to mask for them. Outside the image the state is zero.
- Moved down a row, the whole leftward map is past. So its input-to-state needs no colour mask and has none.
- In the paper the leftward LSTM never learns of the last pixel of the row above, because no stream of that row has
  read it. Beyond the reach of the first kernel this pixel is unseen. Here the leftward LSTM of the first layer also
  reads each pixel's own values.

The rest, and what differs from the paper, is in `pixelrnn.py`. B images, H x W pixels, S stream width, U = S // 2
units. Of two directions the rightward one comes first. Leftward maps are computed on mirrored images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec
from genlab.nets.causal.pixelrnn import GateInput, PixelRNN, cell, initial_state, pointwise, uniform
from genlab.nets.layers.masked import MaskedConv2d

CONFIGURABLE = {"net": ("DiagonalBiLSTM",)}

Biases = tuple[Tensor | None, Tensor | None]  # of the rightward and the leftward gates, each (B, 4 U, h, w)


class Reorder(torch.autograd.Function):
    """`index_select` by a permutation. Its gradient is a permutation too, cheaper than autograd's sum over indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, order: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        """x with its dimension `dim` in the order `order`."""
        ctx.dim = dim
        ctx.save_for_backward(inverse)
        return x.index_select(dim, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """The inverse permutation."""
        return grad.index_select(ctx.dim, ctx.saved_tensors[0]), None, None, None


class DiagonalLayer(nn.Module):
    """Residual layer, (B, S, H, W) -> same shape. Its streams lie in memory as (S, H, W, B)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.units = width // 2
        inputs = nn.ModuleList(GateInput(width, self.units, groups=g) for g in (groups, 1))
        self.inputs: Sequence[GateInput] = inputs  # type: ignore[assignment]  # so that the parts keep their types
        self.states = nn.Parameter(uniform(2, 4 * self.units, 2 * self.units))  # of the pixel above, the one before
        self.matrix_rows = {"states": 8 * [self.units]}  # the gates of both directions, for Muon
        self.up = MaskedConv2d("B", self.units, width, 1, groups=groups)

    def run(self, x: Tensor, biases: Biases = (None, None)) -> Tensor:
        """Stream (S, H, W, B) and what is added to the gates -> outputs of both directions (2, U, H, W, B)."""
        height, width, batch = x.shape[1:]
        order, inverse, extents = diagonals(height, width, x.device)

        def by_diagonal(m: Tensor, mirrored: int) -> Tensor:  # (n, H, W, B) -> (n, H W, B)
            return Reorder.apply((m.flip(2) if mirrored else m).flatten(1, 2), 1, order, inverse)

        directions = []
        for mirrored, (inputs, bias) in enumerate(zip(self.inputs, biases, strict=True)):
            gates = inputs(by_diagonal(x, mirrored))
            if bias is not None:
                everywhere = bias.permute(1, 2, 3, 0).expand(-1, height, width, batch)
                gates = gates + by_diagonal(everywhere, mirrored)
            directions.append(gates.flatten(1))
        h = self._recur(torch.stack(directions), extents, batch)
        right, left = Reorder.apply(h, 2, inverse, order).unflatten(2, (height, width)).unbind()
        return torch.stack([right, left.flip(2)])

    def _recur(self, gates: Tensor, extents: list[tuple[int, int]], batch: int) -> Tensor:
        """Gates in the order of the diagonals (2, 4 U, H W B) -> outputs (2, U, H W, B)."""
        h = memory = initial_state(2, self.units, batch, like=gates)
        first, last = extents[0]
        outputs = []
        of_diagonals = gates.split([batch * (b - a + 1) for a, b in extents], 2)
        for here, (a, b) in zip(of_diagonals, extents, strict=True):
            # Rows a - 1 .. b of the diagonal before: the pixel above is a row up, the one to the left in the same row.
            at_top, at_left = batch * (a == first), batch * (b > last)
            before = F.pad(h, (at_top, at_left))
            states = torch.cat([before[..., :-batch], before[..., batch:]], 1)
            memory = F.pad(memory, (at_top - batch, at_left))
            h, memory = cell(torch.baddbmm(here, self.states, states), memory)
            outputs.append(h)
            first, last = a, b
        return torch.cat(outputs, 2).unflatten(2, (-1, batch))

    def forward(self, h: Tensor, biases: Biases = (None, None)) -> Tensor:
        """Stream (B, S, H, W) and what is added to the gates -> next stream (B, S, H, W)."""
        x = h.permute(1, 2, 3, 0).contiguous()  # copies before the first layer only
        return self.add(x, self.run(x, biases))

    def add(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Stream (S, H, W, B) and outputs (2, U, H, W, B) -> next stream (B, S, H, W)."""
        right, left = outputs.unbind()
        seen = right + F.pad(left[:, :-1], (0, 0, 0, 0, 1, 0))  # the leftward map, moved down a row
        return (x + pointwise(self.up, seen)).permute(3, 0, 1, 2)


def diagonals(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Pixels in the order of their diagonals, each from above: raster indices, their inverse, first and last rows."""
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    order = ((rows + columns) * height + rows).flatten().argsort()
    return order, order.argsort(), [(max(0, d - width + 1), min(height - 1, d)) for d in range(height + width - 1)]


class DiagonalBiLSTM(PixelRNN):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `width`: channels of the residual stream; `depth`: number of layers, of two LSTMs each; `kernel`: size of the first
    layer's kernel; `feature_width`: D, features of a step, which the head reads; `value_width`: numbers that represent
    a value at the input (1: its intensity); `chained`: a step is a pixel, not a value. Raises RequestError for
    impossible sizes.
    """

    adamw_weights = ("first.weight", "own.weight")  # read the image: not for Muon

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = False,
        width: int = 64,
        depth: int = 12,
        kernel: int = 7,
        feature_width: int = 64,
        value_width: int = 8,
    ) -> None:
        super().__init__(
            spec=spec, context_width=context_width, chained=chained, width=width, depth=depth, kernel=kernel,
            feature_width=feature_width, value_width=value_width, directions=2,
        )  # fmt: skip
        blocks = nn.ModuleList(DiagonalLayer(width, self.groups) for _ in range(depth))
        self.blocks: Sequence[DiagonalLayer] = blocks  # type: ignore[assignment]  # a ModuleList forgets the types
        # From a pixel's values to its leftward gates in the first layer.
        self.own = nn.Conv2d(self.values.channels, 4 * self.units, 1, bias=False)

    def gate_biases(self, values: Tensor, biases: list[Tensor | None]) -> list[Biases]:
        """What a context adds, by direction, and in the first layer's leftward gates what the pixel's values add."""
        pairs: list[Any] = [(None, None) if bias is None else tuple(bias.chunk(2, 1)) for bias in biases]
        right, left = pairs[0]
        pairs[0] = right, self.own(values) if left is None else self.own(values) + left
        return pairs

    def receptive_field(self, row: int, column: int) -> Tensor:
        """Pixels (H, W) bool, other than itself, that a pixel's features depend on: all before it."""
        height, width = self.spec.height, self.spec.width
        return (torch.arange(height * width) < row * width + column).view(height, width)
