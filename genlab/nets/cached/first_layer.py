"""The first layer of a cached net, a masked k x k convolution of the image: rows above once a row, then what is left.

Mask A (van den Oord et al. 2016, arXiv:1601.06759): a pixel reads the k // 2 rows above, the pixels to its left and the
colours of its own that come before. The input of the current row lies in one line, the colours of a pixel together, so
that what a step reads of it is one slice.

B images, W columns, C E numbers that are read of a pixel, G colours that take turns, S outputs, p = k // 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.cached.base import Cache, row_weight
from genlab.nets.layers.masked import MaskedConv2d


class FirstLayer:
    """Buffers of the input and the weights that read them."""

    def __init__(self, cache: Cache, conv: MaskedConv2d) -> None:
        self.pad, self.columns, self.channels = conv.kernel_size[0] // 2, cache.columns, cache.channels
        self.step_width = cache.step_width
        self.line = cache.buffer(cache.batch, (self.pad + self.columns) * self.channels, images=0)  # the current row
        self.rows = cache.buffer(cache.batch, self.channels, self.pad, self.columns, images=0)  # those above it
        # For each step of a row, where its values belong (B, c E).
        self.inputs = list(self.line[:, self.pad * self.channels :].split(cache.step_width, 1))
        weight = conv.masked_weight.detach()
        self.weight, self.above = weight[:, :, self.pad, : self.pad + 1], weight[:, :, : self.pad]
        self.bias = conv.bias.detach()

    def newest(self) -> Tensor:
        """What is read of the newest row, (B, W, C E)."""
        return self.line.unflatten(1, (-1, self.channels))[:, self.pad :]

    def begin_row(self) -> Tensor:
        """The newest row joins those above; -> what they and the bias give to the pixels of the next one (W, B, S)."""
        if not self.pad:
            return self.bias.expand(self.columns, len(self.line), -1)
        self.rows.copy_(torch.cat([self.rows[:, :, 1:], self.newest().transpose(1, 2)[:, :, None]], 2))
        padded = F.pad(self.rows, (self.pad, self.pad))
        return F.conv2d(padded, self.above, self.bias)[:, :, 0].permute(2, 0, 1)

    def prefill(self, values: Tensor) -> None:
        """Take in known rows (B, C E, rows, W). The newest joins those above when the next row begins."""
        self.newest().copy_(values[:, :, -1].transpose(1, 2))
        above = values[:, :, :-1][:, :, -self.pad :] if self.pad else values[:, :, :0]
        self.rows[:, :, self.pad - above.shape[2] :] = above

    def reads(self, colour: int) -> list[Tensor]:
        """For every column, what a step of that colour reads of the row: the pixels to the left, colours so far."""
        own = self.pad * self.channels + colour * self.step_width
        return [self.line[:, j * self.channels : j * self.channels + own] for j in range(self.columns)]

    def row_weight(self, out: slice, colour: int) -> Tensor:
        """Weights of the outputs `out` for a product with `reads`, (k, n)."""
        return row_weight(self.weight[out], colour * self.step_width)
