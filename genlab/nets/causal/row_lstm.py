"""Row LSTM (van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv:1601.06759, sec. 3.1): an LSTM down the rows.

All pixels of a row are computed at once. Their gates read the row above through an unmasked k x 1 convolution of its
outputs, and their own row through a masked k x 1 convolution of the layer's input, k = `row_kernel`. So a layer sees a
triangle, which for k = 3 is one pixel wider on each side for every row further up, and one pixel to the left. What lies
beyond the triangle's sides is never seen. Every further layer widens it to the left only.

The rest, and what differs from the paper, is in `pixelrnn.py`. B images, H x W pixels, S stream width, U = S // 2
units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.pixelrnn import GateInput, PixelRNN, cell, initial_state, pointwise, uniform
from genlab.nets.layers.masked import MaskedConv2d

CONFIGURABLE = {"net": ("RowLSTM",)}


class RowLSTMLayer(nn.Module):
    """Residual layer, (B, S, H, W) -> same shape. Its streams lie in memory as (S, H, W, B)."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.units = kernel, width // 2
        self.inputs = GateInput(width, self.units, reach=kernel // 2, groups=groups)
        self.states = nn.Parameter(uniform(4 * self.units, kernel * self.units))
        self.matrix_rows = {"states": 4 * [self.units]}  # the gates, for Muon
        self.up = MaskedConv2d("B", self.units, width, 1, groups=groups)

    def run(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Stream (S, H, W, B) and a context's bias (B, 4 U, h, w) -> outputs (U, H, W, B), memory of the last row."""
        columns, batch = x.shape[2:]
        gates = self.inputs(x)
        if bias is not None:
            gates = gates + bias.permute(1, 2, 3, 0)
        h = memory = initial_state(self.units, columns * batch, like=gates)
        outputs = []
        for row in gates.flatten(2).unbind(1):
            above = F.pad(h, 2 * (self.kernel // 2 * batch,))  # pixels to the left and right of the image
            taps = [above[:, t * batch : (t + columns) * batch] for t in range(self.kernel)]
            h, memory = cell(torch.addmm(row, self.states, torch.cat(taps)), memory)
            outputs.append(h)
        return torch.stack(outputs, 1).unflatten(2, (columns, batch)), memory.unflatten(1, (columns, batch))

    def forward(self, h: Tensor, bias: Tensor | None = None) -> Tensor:
        """Stream (B, S, H, W) and a context's bias (B, 4 U, h, w) -> next stream (B, S, H, W)."""
        x = h.permute(1, 2, 3, 0).contiguous()  # copies before the first layer only
        return self.add(x, self.run(x, bias)[0])

    def add(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Stream (S, H, W, B) and outputs (U, H, W, B) -> next stream (B, S, H, W)."""
        return (x + pointwise(self.up, outputs)).permute(3, 0, 1, 2)


class RowLSTM(PixelRNN):
    """Integer images (B, C, H, W) -> features of every step (B, T, D) that depend on earlier steps alone.

    `width`: channels of the residual stream; `depth`: number of LSTM layers; `kernel`: size of the first layer's
    kernel; `row_kernel`: how many pixels of the row above a state reads, odd; `feature_width`: D, features of a step,
    which the head reads; `value_width`: numbers that represent a value at the input (1: its intensity); `chained`: a
    step is a pixel, not a value. Raises RequestError for impossible sizes.
    """

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = False,
        width: int = 64,
        depth: int = 12,
        kernel: int = 7,
        row_kernel: int = 3,
        feature_width: int = 64,
        value_width: int = 8,
    ) -> None:
        if row_kernel < 1 or row_kernel % 2 == 0:
            raise RequestError(f"row_lstm needs an odd row_kernel, got {row_kernel}")
        super().__init__(
            spec=spec, context_width=context_width, chained=chained, width=width, depth=depth, kernel=kernel,
            feature_width=feature_width, value_width=value_width, directions=1,
        )  # fmt: skip
        self.row_kernel = row_kernel
        blocks = nn.ModuleList(RowLSTMLayer(width, row_kernel, self.groups) for _ in range(depth))
        self.blocks: Sequence[RowLSTMLayer] = blocks  # type: ignore[assignment]  # a ModuleList forgets the types

    def receptive_field(self, row: int, column: int) -> Tensor:
        """Pixels (H, W) bool, other than itself, that a pixel's features depend on: a triangle."""
        reach = self.row_kernel // 2
        seen = torch.zeros(self.spec.height, self.spec.width, dtype=torch.bool)
        for y in range(row + 1):  # streams of row y that reach the pixel; every layer reaches one step further left
            away = (row - y) * reach
            left = max(column - away - len(self.blocks) * reach, 0)
            seen[y, left : column + away + 1] = True
        return self.first.pixels_read(seen)
