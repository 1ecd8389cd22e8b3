"""Encoder and decoder of strided convolutions: an image to a vector, and a vector to features of every step.

Encoder: convolutions that each halve the image, followed by ReLU, then a linear layer. Decoder: a linear layer, then
transposed convolutions that each double the map. The shape is that of DCGAN (Radford et al. 2016, arXiv:1511.06434),
ours has no normalisation. An odd size is rounded up when it is halved, and the extra row or column is cut off on the
way back. Tied weights and columns of length 1 are in `tied.py`.

B images y (B, C, H, W) in [0, 1]; code h (B, L); T steps of c values, D features each: (B, T, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.coders.tied import decoder_weights, remove_weights

CONFIGURABLE = {"encoder": ("ConvEncoder",), "decoder": ("ConvDecoder",)}


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) -> vectors (B, `outputs`).

    `widths`: channels after each halving. `kernel`: an even number; 4 is usual.
    """

    adamw_weights = ("layers.0.weight",)  # read the image: not for Muon

    def __init__(
        self, *, spec: ImageSpec, outputs: int, widths: Sequence[int] = (32, 64, 128), kernel: int = 4
    ) -> None:
        super().__init__()
        check_conv(widths, kernel)
        rows, columns = sizes(spec, len(widths))[-1]
        convs = [
            nn.Conv2d(a, b, kernel, stride=2, padding=kernel // 2 - 1) for a, b in pairwise([spec.channels, *widths])
        ]
        self.layers = nn.ModuleList([*convs, nn.Linear(widths[-1] * rows * columns, outputs)])

    def filters(self) -> Tensor:
        """Kernels of the first layer, (D, C, k, k)."""
        return self.layers[0].weight  # type: ignore[return-value]

    def forward(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs)."""
        for layer in self.layers[:-1]:
            y = layer(pad_to_even(y)).relu()
        return self.layers[-1](y.flatten(1))


class ConvDecoder(nn.Module):
    """Codes (B, `inputs`) -> features (B, T, D).

    `features`: D. `widths`: the encoder's, in the encoder's order. `tied`, `unit_columns`: see `tied.py`.
    """

    def __init__(
        self,
        *,
        spec: ImageSpec,
        inputs: int,
        step_channels: int,
        features: int,
        widths: Sequence[int] = (32, 64, 128),
        kernel: int = 4,
        tied: bool = False,
        unit_columns: bool = False,
    ) -> None:
        super().__init__()
        check_conv(widths, kernel)
        self.features, self.tied, self.unit_columns = features, tied, unit_columns
        self.sizes, self.padding = sizes(spec, len(widths))[::-1], kernel // 2 - 1
        outputs = spec.channels // step_channels * features
        channels = pairwise([*widths[::-1], outputs])
        first = nn.Linear(inputs, widths[-1] * self.sizes[0][0] * self.sizes[0][1])
        self.layers = nn.ModuleList([first, *(nn.ConvTranspose2d(a, b, kernel) for a, b in channels)])
        if tied:
            remove_weights(self.layers)

    def forward(self, h: Tensor, encoder: ConvEncoder | None = None) -> Tensor:
        """(B, L) -> (B, T, D)."""
        (first, *rest), (weight, *weights) = self.layers, decoder_weights(self, encoder)
        h = F.linear(h, weight, first.bias).view(len(h), -1, *self.sizes[0])  # type: ignore[arg-type]
        for layer, weight, (height, width) in zip(rest, weights, self.sizes[1:], strict=True):
            h = F.conv_transpose2d(h.relu(), weight, layer.bias, stride=2, padding=self.padding)[..., :height, :width]  # type: ignore[arg-type]
        return h.permute(0, 2, 3, 1).reshape(len(h), -1, self.features)  # where a step is a colour, a pixel is C steps


def check_conv(widths: Sequence[int], kernel: int) -> None:
    """Raise RequestError unless convolutions of these widths and this kernel can halve an image."""
    if not widths or min(widths) < 1 or kernel < 2 or kernel % 2:
        raise RequestError(
            f"strided convolutions need widths and an even kernel, got {list(widths)} and kernel={kernel}"
        )


def sizes(spec: ImageSpec, halvings: int) -> list[tuple[int, int]]:
    """(rows, columns) of the map after 0, 1, …, `halvings` halvings, rounded up."""
    return [(-(-spec.height >> i), -(-spec.width >> i)) for i in range(halvings + 1)]


def pad_to_even(y: Tensor) -> Tensor:
    """(B, C, H, W) with zeros below and to the right where H or W is odd."""
    return F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2))
