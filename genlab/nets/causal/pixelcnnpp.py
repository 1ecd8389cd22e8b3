"""PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017, arXiv:1701.05517, sec. 2 and appendix).

Two streams of gated residual blocks work on whole pixels. Shifts make them causal. Stream `u` sees the rows above (2x3
convolutions). Stream `ul` sees those rows and the pixels to the left (2x2 convolutions), and reads `u` at every block.
Strided convolutions halve the resolution; `depth` blocks work at each. The way back to the full resolution has as many
blocks, and one more at each finer resolution. Each of them reads the result of a block on the way there (a skip); the
last result is read first.

Differs from the paper: dropout is off by default; weights start at a fixed scale (see `shifted`); sizes that 2 does not
divide are rounded up, so any image will do; the number of resolutions is free; a context may also be a map, which is
averaged for the coarse resolutions; the last projection belongs to the head, which also orders the colours.

Strides keep the order. Stream ul of the coarse pixel (i, j) has seen what comes before the fine pixel (2 i, 2 j), and
the fine pixels (2 i, 2 j) to (2 i + 1, 2 j + 1) read it. Stream u of it has seen what is above row 2 i.

B images, C channels, H x W pixels, F = `width` channels of a stream, also the D features of a step; T = H * W steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.shifted import GatedResNet, ShiftedConv2d, ShiftedUp2d, shift_down, shift_right
from genlab.nets.layers.values import Values

CONFIGURABLE = {"net": ("PixelCNNpp",)}

DOWN = partial(ShiftedConv2d, kernel=(2, 3), kind="down")
RIGHT = partial(ShiftedConv2d, kernel=(2, 2), kind="down_right")
Streams = tuple[Tensor, Tensor]  # u and ul, each (B, F, h, w)
Biases = list[tuple[Tensor | None, Tensor | None]]  # of u and ul in every block: (B, 2 F, h or 1, w or 1) or None
Conv = TypeVar("Conv", ShiftedConv2d, ShiftedUp2d)


class Pair(nn.Module):
    """A block of each stream. ul reads u; on the way back (`skip`) both also read a skip of their own stream."""

    def __init__(self, width: int, *, skip: bool, dropout: float) -> None:
        super().__init__()
        self.u = GatedResNet(width, DOWN, side=width if skip else 0, dropout=dropout)
        self.ul = GatedResNet(width, RIGHT, side=2 * width if skip else width, dropout=dropout)

    def forward(
        self, u: Tensor, ul: Tensor, skip: Streams | None, biases: tuple[Tensor | None, Tensor | None]
    ) -> Streams:
        """Streams and skips (B, F, h, w), biases of a context (B, 2 F, h, w) or (B, 2 F, 1, 1) -> the streams."""
        u = self.u(u, None if skip is None else skip[0], biases[0])
        return u, self.ul(ul, u if skip is None else torch.cat([u, skip[1]], 1), biases[1])


class Resize(nn.Module, Generic[Conv]):
    """Takes both streams to the next resolution, by a strided convolution each or by its transpose."""

    def __init__(self, u: Conv, ul: Conv) -> None:
        super().__init__()
        self.u: Conv = u
        self.ul: Conv = ul

    def forward(self, u: Tensor, ul: Tensor, *size: tuple[int, int]) -> Streams:
        """Streams (B, F, h, w) and, for the transpose, the new size (rows, columns) -> the streams."""
        return self.u(u, *size), self.ul(ul, *size)


class PixelCNNpp(nn.Module, Recompute):
    """Integer images (B, C, H, W) -> features of every pixel (B, H * W, D), which depend only on earlier pixels.

    `width`: F, channels of a stream, and D; `depth`: blocks at each resolution; `resolutions`: how many there are, each
    half the one before; `dropout`: probability that a value inside a block is dropped in training; `chained` changes
    nothing: a step always is a whole pixel, and the head orders its colours. Raises RequestError for other sizes.
    """

    adamw_weights = ("stem_u.weight", "stem_above.weight", "stem_left.weight")  # read the image: not for Muon

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context_width: int = 0,
        chained: bool = False,
        width: int = 160,
        depth: int = 5,
        resolutions: int = 3,
        dropout: float = 0.0,
        value_width: int = 8,
    ) -> None:
        super().__init__()
        if min(width, depth, resolutions) < 1 or not 0 <= dropout < 1:
            raise RequestError(
                "pixelcnnpp needs width, depth and resolutions >= 1 and 0 <= dropout < 1, "
                f"got width={width}, depth={depth}, resolutions={resolutions}, dropout={dropout}"
            )
        self.spec, self.width, self.depth, self.resolutions = spec, width, depth, resolutions
        self.out_width, self.step_channels = width, spec.channels
        self.values = Values(spec, value_width)
        read = self.values.channels + 1
        self.stem_u = ShiftedConv2d(read, width, (2, 3), kind="down")
        self.stem_above = ShiftedConv2d(read, width, (1, 3), kind="down")
        self.stem_left = ShiftedConv2d(read, width, (2, 1), kind="down_right")
        back = [depth if level == resolutions - 1 else depth + 1 for level in range(resolutions)]
        blocks = nn.ModuleList(Pair(width, skip=False, dropout=dropout) for _ in range(depth * resolutions))
        blocks.extend(Pair(width, skip=True, dropout=dropout) for _ in range(sum(back)))
        self.blocks: Sequence[Pair] = blocks  # type: ignore[assignment]  # the blocks keep their types
        shrink = nn.ModuleList(Resize(DOWN(width, width, stride=2), RIGHT(width, width, stride=2)) for _ in back[1:])
        grow = nn.ModuleList(
            Resize(ShiftedUp2d(width, width, kind="down"), ShiftedUp2d(width, width, kind="down_right"))
            for _ in back[1:]
        )
        self.shrink: Sequence[Resize[ShiftedConv2d]] = shrink  # type: ignore[assignment]
        self.grow: Sequence[Resize[ShiftedUp2d]] = grow  # type: ignore[assignment]
        biases = nn.ModuleList(LayerBiases(context_width, 2 * (depth + n) * [2 * width]) for n in back)
        self.biases: Sequence[LayerBiases] = biases  # type: ignore[assignment]

    def size(self, level: int) -> tuple[int, int]:
        """Rows and columns at a resolution, 0 the finest."""
        return -(-self.spec.height >> level), -(-self.spec.width >> level)

    def pairs(self, level: int) -> tuple[Sequence[Pair], Sequence[Pair]]:
        """The blocks of a resolution: those on the way there, and those on the way back."""
        coarser = self.resolutions - 1 - level
        start = self.depth * self.resolutions + (coarser * (self.depth + 1) - 1 if coarser else 0)
        count = self.depth + bool(coarser)
        return self.blocks[level * self.depth : (level + 1) * self.depth], self.blocks[start : start + count]

    def stem(self, values: Tensor) -> Streams:
        """Values (B, C E, h, W) -> the streams before the first block.

        Ones beside the values tell the image from the zeros around it.
        """
        image = torch.cat([values, torch.ones_like(values[:, :1])], 1).contiguous(memory_format=torch.channels_last)
        u = shift_down(self.stem_u(image))
        return u, shift_down(self.stem_above(image)) + shift_right(self.stem_left(image))

    def contexts(self, context: Tensor | None) -> list[Tensor | None]:
        """Context features (B, E, h, w) for every resolution: averaged from one to the next, if they have places."""
        contexts = [context]
        for _ in self.shrink:
            if context is not None and context.shape[-2:] != (1, 1):
                context = F.avg_pool2d(context, 2, ceil_mode=True)
            contexts.append(context)
        return contexts

    def layer_biases(self, context: Tensor | None) -> list[Biases]:
        """Biases of every resolution: first those of its blocks on the way there, then of those on the way back."""
        return [in_pairs(maps(c)) for maps, c in zip(self.biases, self.contexts(context), strict=True)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W), context features (B, E, h, w) -> (B, H * W, D)."""
        h = self.run(x, self.layer_biases(context))
        return h.permute(0, 2, 3, 1).reshape(len(x), -1, self.out_width)

    def run(self, x: Tensor, biases: list[Biases], newest: int | None = None) -> Tensor:
        """The first h rows of integer images (B, C, h, W), and biases for them -> features (B, D, h, W).

        With `newest`, only that many of the last rows are computed: the way back leaves out what they do not read.
        """
        u, ul = self.stem(self.values(x))
        sizes, skips = [], []
        for level in range(self.resolutions):
            if level:
                u, ul = self.shrink[level - 1](u, ul)
            sizes.append((u.shape[2], u.shape[3]))
            skips.append((u, ul))
            for pair, bias in zip(self.pairs(level)[0], biases[level], strict=False):
                u, ul = pair(u, ul, None, bias)
                skips.append((u, ul))
        # The rows to compute at every resolution: a block reads two more than it gives, and ul reads u one row above.
        wanted = []
        for level, (rows, _) in enumerate(sizes):
            newest = rows if newest is None else min(newest + 2 * len(self.pairs(level)[1]) + 1, rows)
            wanted.append(slice(rows - newest, None))
            newest = newest // 2 + 1
        u, ul = (stream[:, :, wanted[-1]] for stream in skips.pop())
        for level in reversed(range(self.resolutions)):
            here = wanted[level]
            if level < self.resolutions - 1:
                left_out = 2 * wanted[level + 1].start
                u, ul = self.grow[level](u, ul, (sizes[level][0] - left_out, sizes[level][1]))
                u, ul = (stream[:, :, here.start - left_out :] for stream in (u, ul))
            for pair, bias in zip(self.pairs(level)[1], biases[level][self.depth :], strict=True):
                above, left = skips.pop()
                bias_u, bias_ul = (b if b is None or b.shape[2] == 1 else b[:, :, here] for b in bias)
                u, ul = pair(u, ul, (above[:, :, here], left[:, :, here]), (bias_u, bias_ul))
        assert not skips
        return F.elu(ul)

    def receptive_field(self, row: int, column: int) -> Tensor:
        """The pixels (H, W) bool that the features of a pixel depend on."""
        values, features = _increasing_net(*self.size(0), self.depth, self.resolutions)
        this_one = torch.zeros_like(features)
        this_one[:, row * self.spec.width + column] = 1
        (gradient,) = torch.autograd.grad(features, values, this_one, retain_graph=True)
        return gradient[0, 0] > 0


def in_pairs(maps: list[Tensor | None]) -> Biases:
    """Biases of u and ul in turn -> pairs."""
    return list(zip(maps[::2], maps[1::2], strict=True))


@lru_cache(4)
@torch.inference_mode(False)
@torch.enable_grad()
def _increasing_net(height: int, width: int, depth: int, resolutions: int) -> tuple[Tensor, Tensor]:
    """Values (1, 1, H, W) and features (1, T, 1) of a net in which every output grows with every input it reads.

    For this the net has positive weights, which ignore the -x of `concat_elu`, and no biases. The gradient of a feature
    is then positive exactly at the pixels that the feature depends on.
    """
    with torch.random.fork_rng(devices=[]):
        net = PixelCNNpp(spec=ImageSpec(1, height, width), width=1, depth=depth, resolutions=resolutions, value_width=1)
    for name, parameter in net.double().named_parameters():
        nn.init.constant_(parameter, {"weight": 1.0, "gain": 0.5, "bias": 0.0}[name.rsplit(".")[-1]])
    for conv in net.modules():
        if isinstance(conv, ShiftedConv2d):
            nn.init.zeros_(conv.weight[:, (conv.in_channels + 1) // 2 :])
    values = torch.ones(1, 1, height, width, dtype=torch.double, requires_grad=True)
    net.values.register_forward_hook(lambda *_: values)
    return values, net(torch.zeros(1, 1, height, width, dtype=torch.long))
