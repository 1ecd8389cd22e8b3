"""PixelSNAIL (Chen, Mishra, Rohaninejad, Abbeel 2018, arXiv:1712.09763, sec. 2 and fig. 3).

Convolutions are good at near pixels, and attention sees the whole past at once. Each of the `depth` blocks has `layers`
gated residual blocks with 2x2 convolutions, and then attention of every pixel to all earlier ones. Keys and values are
computed from the image, the stream and the place of a pixel; queries from the stream and the place. A last gated block
with 1x1 convolutions adds the result of attention to the stream. There is only the stream "above and left" of
PixelCNN++, at full resolution. From the first block on, a pixel sees the whole past.

The value of a pixel contains the pixel itself, so attention is strict: pixel t attends to the pixels before t in raster
order. The first pixel attends to nothing and gets zeros. This needs no T x T mask: queries 1 .. T - 1 with keys
0 .. T - 2 are ordinary causal attention.

Differs from the paper: attention divides by the sum of its weights alone (the paper's code adds 1e-6), weights start as
in `shifted` instead of depending on a first batch, and attention may have several heads. A context adds to what every
gated block computes before its gate.

B images, C channels, H x W pixels, F features of a step and channels of the stream. Steps are whole pixels, T = H * W.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.shifted import GatedResNet, ShiftedConv2d, pointwise, shift_down, shift_right
from genlab.nets.layers.values import Values

CONFIGURABLE = {"net": ("PixelSNAIL",)}


class Block(nn.Module):
    """Gated convolutions, then attention to all earlier pixels: (B, F, H, W) -> same.

    `layers` gated residual blocks; `heads` with keys of `key_width` channels each and values of F / 2 in all.
    """

    def __init__(self, channels: int, width: int, layers: int, heads: int, key_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.keys, self.values = heads, heads * key_width, width // 2
        conv = partial(ShiftedConv2d, kernel=(2, 2), kind="down_right")
        convs = nn.ModuleList(GatedResNet(width, conv, dropout=dropout) for _ in range(layers))
        self.convs: Sequence[GatedResNet] = convs  # type: ignore[assignment]  # so that the parts keep their types
        self.memory = GatedResNet(channels + width + 2, dropout=dropout)
        self.to_memory = pointwise(channels + width + 2, self.keys + self.values)
        self.matrix_rows = {"to_memory.weight": [self.keys, self.values]}  # for Muon
        self.query = GatedResNet(width + 2, dropout=dropout)
        self.to_query = pointwise(width + 2, self.keys)
        self.out = GatedResNet(width, side=self.values, dropout=dropout)
        # A context adds to the inputs of every gate: their widths, in the order of use.
        self.bias_widths = layers * [2 * width] + [2 * (channels + width + 2), 2 * (width + 2), 2 * width]

    def forward(self, h: Tensor, raw: Tensor, place: Tensor, biases: Sequence[Tensor | None]) -> Tensor:
        """Stream (B, F, H, W), image (B, C E, H, W), places (B, 2, H, W), biases (B, n, h, w) or None -> the stream."""
        h, query, keys, values = self.look(h, raw, place, biases)
        return self.out(h, earlier(query, keys, values, self.heads), biases[-1])

    def look(
        self, h: Tensor, raw: Tensor, place: Tensor, biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The stream after the convolutions, query and keys (B, K, H, W), values (B, V, H, W)."""
        *of_convs, of_memory, of_query, _ = biases
        for conv, bias in zip(self.convs, of_convs, strict=True):
            h = conv(h, bias=bias)
        memory = self.to_memory(self.memory(_joined(raw, h, place), bias=of_memory))
        query = self.to_query(self.query(_joined(h, place), bias=of_query))
        keys, values = memory.split([self.keys, self.values], 1)
        return h, query, keys, values


class PixelSNAIL(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every pixel (B, T, F), which depend only on earlier pixels.

    `width`: F; `depth`: blocks; `layers`: gated blocks with 2x2 convolutions in each; `key_width`: channels of a key in
    each head; `dropout`: inside every gated block while training; `chained` changes nothing: a step always is a whole
    pixel. Raises RequestError for impossible sizes.
    """

    place: Tensor

    adamw_weights = ("above.weight", "left.weight")  # read the image: not for Muon

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = True,
        width: int = 32,
        depth: int = 2,
        layers: int = 4,
        attention_heads: int = 1,
        key_width: int = 16,
        dropout: float = 0.0,
        value_width: int = 8,
    ) -> None:
        super().__init__()
        if min(depth, layers, key_width, attention_heads) < 1 or width < 2 or width // 2 % attention_heads:
            raise RequestError(
                "pixelsnail needs depth, layers, key_width and attention_heads >= 1, and half the width a multiple of "
                f"attention_heads, got depth={depth}, layers={layers}, key_width={key_width}, "
                f"attention_heads={attention_heads}, width={width}"
            )
        self.spec, self.width, self.out_width, self.step_channels = spec, width, width, spec.channels
        self.values = Values(spec, value_width)
        read = self.values.channels
        self.above = ShiftedConv2d(read + 1, width, (1, 3), kind="down")
        self.left = ShiftedConv2d(read + 1, width, (2, 1), kind="down_right")
        sizes = read, width, layers, attention_heads, key_width, dropout
        blocks = nn.ModuleList(Block(*sizes) for _ in range(depth))
        self.blocks: Sequence[Block] = blocks  # type: ignore[assignment]
        self.layers = len(self.blocks[0].bias_widths)  # gated residual blocks in each block
        self.biases = LayerBiases(context_width, [n for block in self.blocks for n in block.bias_widths])
        place = torch.meshgrid(*(torch.arange(n) / n - 0.5 for n in spec.shape[1:]), indexing="ij")
        self.register_buffer("place", torch.stack(place), persistent=False)  # (2, H, W)

    def stem(self, raw: Tensor) -> Tensor:
        """Values (B, C E, H, W) -> (B, F, H, W): the three pixels above, the left one and the one above that."""
        ones = F.pad(raw, (0, 0, 0, 0, 0, 1), value=1.0)
        h = shift_down(self.above(ones)) + shift_right(self.left(ones))
        return h.contiguous(memory_format=torch.channels_last)  # one channel of input leaves the format open

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), or their first rows; context features (B, E, h, w) -> (B, T, F)."""
        raw, place, by_block = self._inputs(x, context)
        h = self.stem(raw)
        for block, biases in zip(self.blocks, by_block, strict=True):
            h = block(h, raw, place, biases)
        return F.elu(h).permute(0, 2, 3, 1).reshape(len(x), -1, self.out_width)

    def _inputs(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, list[Sequence[Tensor | None]]]:
        """(values (B, C E, H, W), places (B, 2, H, W), the biases of every block)."""
        place, biases = self.place[:, : x.shape[2]].expand(len(x), -1, -1, -1), self.biases(context)
        by_block = [biases[i : i + self.layers] for i in range(0, len(biases), self.layers)]
        return self.values(x), place, by_block  # type: ignore[return-value]

    def attention_weights(self, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
        """How much every pixel attends to every other: (B, heads, T, T), block by block. The first row is 0."""
        raw, place, by_block = self._inputs(x, context)
        h, weights = self.stem(raw), []
        tokens = x.shape[2] * x.shape[3]
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu()
        for block, biases in zip(self.blocks, by_block, strict=True):
            _, *query_keys, _ = block.look(h, raw, place, biases)
            q, k = (each.flatten(2).unflatten(1, (block.heads, -1)).mT for each in query_keys)
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
            weights.append(scores.softmax(-1).nan_to_num(0.0))
            h = block(h, raw, place, biases)
        return weights

    def receptive_field(self, row: int, column: int) -> Tensor:
        """The pixels (H, W) bool that the features of a pixel depend on: all earlier ones."""
        order = torch.arange(self.spec.height * self.spec.width)
        return (order < row * self.spec.width + column).view(self.spec.shape[1:])


def earlier(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention of every pixel to all earlier ones: query and keys (B, K, H, W), values (B, V, H, W) -> (B, V, H, W).

    The first pixel has nothing to attend to and gets zeros. A head has K / `heads` and V / `heads` channels.
    """
    q, k, v = (x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3) for x in (query, keys, values))  # (B, h, T, n)
    size, wanted = q.shape[3], v.shape[3]
    # Fused kernels want one width for all three; zeros change nothing.
    q, k, v = (F.pad(x, (0, max(size, wanted) - x.shape[3])) for x in (q, k, v))
    attended = v[:, :, :0]
    if v.shape[2] > 1:
        attended = F.scaled_dot_product_attention(
            q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], is_causal=True, scale=size**-0.5
        )
    attended = F.pad(attended[..., :wanted], (0, 0, 1, 0))
    return attended.transpose(1, 2).reshape(len(v), *query.shape[2:], -1).permute(0, 3, 1, 2)


def _joined(*maps: Tensor) -> Tensor:
    return torch.cat(maps, 1).contiguous(memory_format=torch.channels_last)
