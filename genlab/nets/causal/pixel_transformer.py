"""Pixel transformer (Parmar et al. 2018, arXiv:1802.05751): causal attention, full or local, over pixels.

A token is a pixel; the head chains its colours. Each of the `depth` blocks has attention and a two-layer network of
four times the width, both with a norm in front and a residual connection around them. Attention is full, in blocks of
the raster sequence, or in rectangles (`attention.py`).

Differs from the paper:
- The token of a pixel is computed by a strictly causal k x k convolution of the pixels before it. The paper embeds the
  pixel before it. The convolution makes neighbourhoods cheap, and no layer has to shift its input. The first pixel of a
  row also reads the last pixel of the row above, as in the paper: the convolution does not reach it.
- Places enter as learnt embeddings of row and column at the input, and as rotations of queries and keys (Su et al.
  2021, arXiv:2104.09864): half of the dimensions of a head by row, half by column.
- Norms come first (RMS, Zhang and Sennrich 2019, arXiv:1910.07467), with one more at the end. The nonlinearity is the
  squared ReLU (So et al. 2021, arXiv:2109.08668). There are no biases. The last map of a residual branch starts smaller
  by sqrt(2 depth) (Child et al. 2019, arXiv:1904.10509).
- The order is raster order, also with rectangles.
In every block a context adds to queries, keys and values, and to the input of the nonlinearity.

B images, C channels, H x W pixels, T = H * W steps of c = C values, D = `width` features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.attention import Full, Local, make_attention, rotary_table, rotate
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.masked import MaskedConv2d
from genlab.nets.layers.values import Values

CONFIGURABLE = {"net": ("PixelTransformer",)}


class Block(nn.Module):
    """Attention and a two-layer network, each added to the residual stream: (B, T, D) -> same."""

    def __init__(self, width: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_up = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.matrix_rows = {"qkv.weight": 3 * [width]}  # for Muon
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        for linear, scale in ((self.qkv, 1), (self.up, 1), (self.out, 2 * depth), (self.down, 2 * depth)):
            nn.init.normal_(linear.weight, std=(linear.in_features * scale) ** -0.5)

    def queries_keys_values(self, h: Tensor, table: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D), rotations (T, d / 2, 2), bias (B, 1 or T, 3D) -> three times (B, heads, T, d)."""
        qkv = self.qkv(self.norm(h))
        if bias is not None:
            qkv = qkv + bias
        qk, v = qkv.unflatten(-1, (3 * self.heads, -1)).split([2 * self.heads, self.heads], 2)
        q, k = rotate(qk, table).to(v.dtype).transpose(1, 2).chunk(2, 1)
        return q, k, v.transpose(1, 2)

    def rest(self, h: Tensor, attended: Tensor, bias: Tensor | None) -> Tensor:
        """The stream (B, T, D), the result of attention (B, heads, T, d), bias (B, 1 or T, 4D) -> the stream."""
        h = h + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        up = self.up(self.norm_up(h))
        if bias is not None:
            up = up + bias
        return h + self.dropout(self.down(up.relu().square()))

    def forward(self, h: Tensor, table: Tensor, attend: Full | Local, biases: tuple[Tensor | None, ...]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.rest(h, attend(*self.queries_keys_values(h, table, biases[0])), biases[1])


class PixelTransformer(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every pixel (B, T, D), which depend only on earlier pixels.

    `kernel`: size of the convolution that computes the tokens; `attention`: full, local_1d in blocks of `block_length`
    pixels, or local_2d in rectangles `block` [rows, columns] with a `flange` [rows above, columns on either side].
    Raises RequestError for impossible sizes.
    """

    adamw_weights = ("first.weight", "wrap.weight")  # read the image: not for Muon

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = True,  # a step is a pixel either way
        width: int = 64,
        depth: int = 8,
        attention_heads: int = 4,
        kernel: int = 7,
        attention: str = "full",
        block_length: int = 256,
        block: Sequence[int] = (8, 16),
        flange: Sequence[int] = (8, 8),
        dropout: float = 0.0,
        value_width: int = 8,
    ) -> None:
        super().__init__()
        if min(width, depth, attention_heads) < 1 or width % attention_heads or width // attention_heads % 4:
            raise RequestError(
                "pixel_transformer needs depth >= 1 and a width of attention_heads times a multiple of 4, "
                f"got depth={depth}, width={width}, attention_heads={attention_heads}"
            )
        if kernel < 3:
            raise RequestError(f"pixel_transformer needs a kernel >= 3, or its tokens see nothing; got {kernel}")
        if len(block) != 2 or len(flange) != 2:
            raise RequestError(f"block and flange are two numbers each, got block={block}, flange={flange}")
        self.spec, self.step_channels, self.width, self.out_width = spec, spec.channels, width, width
        self.heads = attention_heads
        self.values = Values(spec, value_width)
        self.first = MaskedConv2d("A", self.values.channels, width, kernel, groups=1)
        self.wrap = nn.Linear(self.values.channels, width, bias=False) if spec.height > 1 else None
        self.rows = nn.Parameter(torch.randn(spec.height, 1, width) * 0.1)
        self.columns = nn.Parameter(torch.randn(spec.width, width) * 0.1)
        self.attend = make_attention(attention, spec, block_length, (block[0], block[1]), (flange[0], flange[1]))
        blocks = nn.ModuleList(Block(width, attention_heads, depth, dropout) for _ in range(depth))
        self.blocks: Sequence[Block] = blocks  # type: ignore[assignment]  # so that the parts keep their types
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.biases = LayerBiases(context_width, depth * [3 * width, 4 * width])
        table = rotary_table(spec.height, spec.width, width // attention_heads)
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor

    def embed(self, x: Tensor) -> Tensor:
        """The first rows of images (B, C, h, W) -> tokens (B, h * W, D); each depends on earlier pixels."""
        values = self.values(x)
        # channels_last: then the convolution writes whole tokens, and nothing has to be moved.
        h = self.first(values).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        h = h + (self.rows[: x.shape[2]] + self.columns)
        if self.wrap is not None and x.shape[2] > 1:
            h[:, 1:, 0] += self.wrap(values[:, :, :-1, -1].transpose(1, 2))
        return h.flatten(1, 2)

    def layer_biases(self, context: Tensor | None) -> list[tuple[Tensor | None, ...]]:
        """Context features (B, E, h, w) -> for every block biases (B, h w, 3D) and (B, h w, 4D), or None twice."""
        maps = [None if m is None else m.flatten(2).transpose(1, 2) for m in self.biases(context)]
        return list(zip(maps[::2], maps[1::2], strict=True))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E, h, w) -> (B, T, D)."""
        h = self.embed(x)
        for block, biases in zip(self.blocks, self.layer_biases(context), strict=True):
            h = block(h, self.table, self.attend, biases)
        return self.norm(h)

    def attention_weights(self, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
        """How much every token attends to every other: (B, heads, T, T) for each block, rows sum to 1."""
        h, weights = self.embed(x), []
        forbidden = ~self.attend.allowed(h.shape[1]).to(h.device)
        for block, biases in zip(self.blocks, self.layer_biases(context), strict=True):
            q, k, _ = block.queries_keys_values(h, self.table, biases[0])
            scores = q @ k.mT / q.shape[-1] ** 0.5
            weights.append(scores.masked_fill(forbidden, -torch.inf).softmax(-1))
            h = block(h, self.table, self.attend, biases)
        return weights

    def filters(self) -> Tensor:
        """What a brighter pixel at each place of the kernel adds to the channels of the first layer, (D, C, k, k)."""
        return self.values.contrast(self.first.masked_weight)

    def receptive_field(self, row: int, column: int) -> Tensor:
        """The pixels (H, W) bool that the features of a pixel depend on, through all tokens that reach it."""
        height, width = self.spec.height, self.spec.width
        allowed = self.attend.allowed(height * width)
        tokens = torch.zeros(height * width, dtype=torch.bool)
        tokens[row * width + column] = True
        for _ in self.blocks:
            tokens = allowed[tokens].any(0)
        pixels = tokens.view(height, width)
        seen = self.first.pixels_read(pixels)
        seen[:-1, -1] |= pixels[1:, 0]  # the first pixel of a row reads the last one of the row above
        return seen
