"""Encoders and decoders: an image to a vector, a vector to features of every step of an image.

Two pairs. `MLPEncoder`, `MLPDecoder`: linear layers with ReLU between them (with none hidden, one linear layer).
`ConvEncoder`, `ConvDecoder`: strided convolutions, each halving the image and followed by ReLU, then a linear layer;
back by a linear layer and transposed convolutions (Radford et al. 2016, arXiv:1511.06434, without normalisation).
Odd sizes are rounded up on the way there and cut on the way back.

A decoder that is `tied` has only biases of its own, and is handed its mirror image, an encoder, whose weights it uses
transposed, the last layer first. `unit_columns` keeps the weights that leave a unit at length 1, in every layer: were
it the code's units alone, a penalty on a small code could be dodged by large weights further on. (Biases are free.)

B images y (B, C, H, W) in [0, 1]; code h (B, L); T steps of c values, D features each: (B, T, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError


class MLPEncoder(nn.Module):
    """Images (B, C, H, W) -> (B, `outputs`). `hidden`: widths of the layers in between."""

    def __init__(self, *, spec: ImageSpec, outputs: int, hidden: Sequence[int] = (512,)) -> None:
        super().__init__()
        self.spec, self.layers = spec, _linears([spec.dims, *hidden, outputs])

    def filters(self) -> Tensor:
        """Weights of the first layer as images (D, C, H, W)."""
        return self.layers[0].weight.view(-1, *self.spec.shape)  # type: ignore[operator, union-attr]

    def forward(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs)."""
        h = y.flatten(1)
        for layer in self.layers[:-1]:
            h = layer(h).relu()
        return self.layers[-1](h)


class MLPDecoder(nn.Module):
    """Codes (B, `inputs`) -> features (B, T, D). `hidden`: widths in between, the encoder's in reverse."""

    def __init__(
        self,
        *,
        spec: ImageSpec,
        inputs: int,
        step_channels: int,
        features: int,
        hidden: Sequence[int] = (512,),
        tied: bool = False,
        unit_columns: bool = False,
    ) -> None:
        super().__init__()
        self.steps, self.features, self.tied, self.unit_columns = (
            spec.dims // step_channels,
            features,
            tied,
            unit_columns,
        )
        self.layers = _linears([inputs, *hidden, self.steps * features])
        _lend(self.layers, tied)

    def forward(self, h: Tensor, encoder: MLPEncoder | None = None) -> Tensor:
        """(B, L) -> (B, T, D)."""
        for i, (layer, weight) in enumerate(zip(self.layers, _weights(self, encoder), strict=True)):
            h = F.linear(h.relu() if i else h, weight, layer.bias)  # type: ignore[arg-type]
        return h.view(len(h), self.features, self.steps).mT  # the order of an image's values, as the encoder reads them


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) -> (B, `outputs`). `widths`: channels after each halving; `kernel`: 4, or any even number."""

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
            y = layer(F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2))).relu()
        return self.layers[-1](y.flatten(1))


class ConvDecoder(nn.Module):
    """Codes (B, `inputs`) -> features (B, T, D). `widths`: as the encoder's; the way back takes them in reverse."""

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
        _lend(self.layers, tied)

    def forward(self, h: Tensor, encoder: ConvEncoder | None = None) -> Tensor:
        """(B, L) -> (B, T, D)."""
        (first, *rest), (weight, *weights) = self.layers, _weights(self, encoder)
        h = F.linear(h, weight, first.bias).view(len(h), -1, *self.sizes[0])  # type: ignore[arg-type]
        for layer, weight, (height, width) in zip(rest, weights, self.sizes[1:], strict=True):
            h = F.conv_transpose2d(h.relu(), weight, layer.bias, stride=2, padding=self.padding)[..., :height, :width]  # type: ignore[arg-type]
        return h.permute(0, 2, 3, 1).reshape(len(h), -1, self.features)  # the colours of a pixel are blocks


def _linears(widths: Sequence[int]) -> nn.ModuleList:
    if min(widths) < 1:
        raise RequestError(f"layers need widths of 1 or more, got {list(widths)}")
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))


def check_conv(widths: Sequence[int], kernel: int) -> None:
    if not widths or min(widths) < 1 or kernel < 2 or kernel % 2:
        raise RequestError(
            f"strided convolutions need widths and an even kernel, got {list(widths)} and kernel={kernel}"
        )


def sizes(spec: ImageSpec, halvings: int) -> list[tuple[int, int]]:
    """Rows and columns after 0, 1, … halvings, rounded up."""
    return [(-(-spec.height >> i), -(-spec.width >> i)) for i in range(halvings + 1)]


def _lend(layers: nn.ModuleList, tied: bool) -> None:
    """Tied layers keep no weights."""
    for layer in layers if tied else ():
        del layer.weight
        layer.register_parameter("weight", None)


def _weights(decoder: MLPDecoder | ConvDecoder, encoder: nn.Module | None) -> list[Tensor]:
    """The decoder's weights, its own or those of its mirror image."""
    if decoder.tied:
        assert encoder is not None
        # A convolution's weights are those of its transpose as they are; a linear layer's are turned.
        weights = [layer.weight.T if layer.weight.ndim == 2 else layer.weight for layer in reversed(encoder.layers)]  # type: ignore[union-attr, arg-type]
    else:
        weights = [layer.weight for layer in decoder.layers]  # type: ignore[misc]
    return [_unit(weight) for weight in weights] if decoder.unit_columns else weights  # type: ignore[arg-type, return-value]


def _unit(weight: Tensor) -> Tensor:
    """What leaves every unit has length 1: columns of a matrix, the first dimension of a transposed convolution."""
    if weight.ndim == 2:
        return F.normalize(weight, dim=0)
    return F.normalize(weight.flatten(1), dim=1).view_as(weight)
