"""Causal attention over the pixels of an image: full, or local in blocks of one or two dimensions; rotary places.

- full: every earlier pixel and the pixel itself.
- local_1d (Parmar et al. 2018, arXiv:1802.05751, sec. 3.2): the raster sequence is cut into query blocks; a block
  attends to itself, causally, and to the block before it.
- local_2d (same): the image is cut into rectangles; a rectangle attends to itself and to a flange: rows above it and
  columns on either side. The paper also generates rectangle by rectangle. Ours keeps the raster order of the whole
  image, so that a known prefix and a completion mean the same for every model. Within reach of its rectangle a pixel
  attends to everything before it in raster order, which includes pixels to its right in the rows above.

Places enter by rotation (Su et al. 2021, arXiv:2104.09864): pairs of dimensions of a head are rotated by angles that
grow with the place, so that the product of a query and a key depends only on their distance. Ours is axial: half of the
pairs rotate with the row, half with the column.

B images, T tokens (pixels, in raster order), d dimensions of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError, nearest

BASE = 100.0  # the slowest pair turns once in about 2 pi * BASE pixels; for text, which is longer, 10,000 is usual


def rotary_table(height: int, width: int, head_dim: int) -> Tensor:
    """Cosine and sine for every token and pair of dimensions (T, d / 2, 2)."""
    speed = BASE ** -torch.linspace(0, 1, head_dim // 4 + 1, dtype=torch.double)[:-1]
    rows, columns = (torch.arange(n, dtype=torch.double)[:, None] * speed for n in (height, width))
    angles = torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], 1)
    return torch.stack([angles.cos(), angles.sin()], -1).to(torch.get_default_dtype())


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs of (B, T, heads, d) by a table (T, d / 2, 2), in the precision of the table."""
    if torch.compiler.is_compiling():  # the compiler has no complex numbers
        (a, b), (cos, sin) = x.to(table.dtype).unflatten(-1, (-1, 2)).unbind(-1), table[:, None].unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    pairs = torch.view_as_complex(x.to(table.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(table)[:, None]).flatten(-2)


class Full(nn.Module):
    """Every token attends to itself and to all before it."""

    columns = 1

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, T, d) each -> (B, heads, T, d)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def allowed(self, tokens: int) -> Tensor:
        """Which token (row) attends to which (column): (T, T) bool."""
        return torch.ones(tokens, tokens, dtype=torch.bool).tril()

    def oldest(self, token: int) -> int:
        """The first token that a token attends to."""
        return 0


class Local(nn.Module):
    """Query blocks of h x w tokens attend to themselves and to a flange around them, causally in raster order.

    The tokens form rows of `columns` tokens: the columns of the image, or 1 for a sequence. They are padded to whole
    blocks. Each block then is one small attention with a mask.
    """

    mask: Tensor

    def __init__(self, rows: int, columns: int, block: tuple[int, int], above: int, side: int) -> None:
        super().__init__()
        self.columns, self.block, self.above, self.side = columns, block, above, side
        h, w = block
        blocks = -(-rows // h), -(-columns // w)
        # Relative to the first token of the block: queries (h w, 1), keys (1, M).
        qy, qx = (g.reshape(-1, 1) for g in _grid(range(h), range(w)))
        ky, kx = (g.reshape(1, -1) for g in _grid(range(-above, h), range(-side, w + side)))
        earlier = (ky < qy) | ((ky == qy) & (kx <= qx))
        top, left = (g.reshape(-1, 1, 1) for g in _grid(range(0, blocks[0] * h, h), range(0, blocks[1] * w, w)))
        inside = (top + ky >= 0) & (top + ky < rows) & (left + kx >= 0) & (left + kx < columns)
        itself = (ky == qy) & (kx == qx)  # padding attends to itself, so that no sum of weights is empty
        self.register_buffer("mask", (earlier & inside) | itself, persistent=False)  # (blocks, h w, M)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, T, d) each -> (B, heads, T, d). T tokens are whole rows, at most those of the image."""
        batch, heads, tokens, d = q.shape
        (h, w), rows = self.block, tokens // self.columns
        down, right = -rows % h, -self.columns % w
        high, wide = (rows + down) // h, (self.columns + right) // w
        q = F.pad(q.reshape(-1, rows, self.columns, d), (0, 0, 0, right, 0, down))
        q = q.view(-1, high, h, wide, w, d).transpose(2, 3).reshape(-1, high * wide, h * w, d)
        k, v = (self._memory(x.reshape(-1, rows, self.columns, d), down, right) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[None, : high * wide])
        out = out.view(-1, high, wide, h, w, d).transpose(2, 3).reshape(-1, high * h, wide * w, d)
        return out[:, :rows, : self.columns].reshape(batch, heads, tokens, d)

    def _memory(self, x: Tensor, down: int, right: int) -> Tensor:
        """(N, rows, columns, d) -> the keys or values in reach of every block (N, blocks, M, d)."""
        x = F.pad(x, (0, 0, self.side, self.side + right, self.above, down))
        h, w = self.block
        x = x.unfold(1, self.above + h, h).unfold(2, w + 2 * self.side, w)  # (N, high, wide, d, rows, columns)
        return x.permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(1, 2)

    def reach(self, token: int) -> tuple[int, int, int]:
        """First row, first column and end of the columns in reach of a token's block; may lie outside the image."""
        row, column = divmod(token, self.columns)
        left = column - column % self.block[1]
        return row - row % self.block[0] - self.above, left - self.side, left + self.block[1] + self.side

    def allowed(self, tokens: int) -> Tensor:
        """Which token (row) attends to which (column): (T, T) bool; from the definition, token by token."""
        place = torch.arange(tokens)
        allowed = torch.zeros(tokens, tokens, dtype=torch.bool)
        for t in range(tokens):
            top, left, right = self.reach(t)
            row, column = place // self.columns, place % self.columns
            allowed[t] = (place <= t) & (row >= top) & (column >= left) & (column < right)
        return allowed

    def oldest(self, token: int) -> int:
        """The first token that a token attends to. With one column it attends to all from there on."""
        top, left, _ = self.reach(token)
        return max(top, 0) * self.columns + max(left, 0)


def make_attention(
    kind: str, spec: ImageSpec, block_length: int, block: tuple[int, int], flange: tuple[int, int]
) -> Full | Local:
    """The attention of a kind (full, local_1d, local_2d) over the pixels of an image. Raises RequestError if wrong."""
    if min(block_length, *block) < 1 or min(flange) < 0:
        raise RequestError(
            "attention needs block_length >= 1, block >= [1, 1] and flange >= [0, 0], "
            f"got block_length={block_length}, block={list(block)}, flange={list(flange)}"
        )
    if kind == "full":
        return Full()
    if kind == "local_1d":
        length = min(block_length, spec.height * spec.width)
        return Local(spec.height * spec.width, 1, (length, 1), above=length, side=0)
    if kind == "local_2d":
        h, w = min(block[0], spec.height), min(block[1], spec.width)
        return Local(spec.height, spec.width, (h, w), above=flange[0], side=flange[1])
    raise RequestError(f"no attention {kind!r}: {nearest(kind, ['full', 'local_1d', 'local_2d'])}")


def _grid(rows: range, columns: range) -> tuple[Tensor, Tensor]:
    """Row and column of every cell of a grid, (rows, columns) each."""
    y, x = torch.meshgrid(torch.tensor(list(rows)), torch.tensor(list(columns)), indexing="ij")
    return y, x
