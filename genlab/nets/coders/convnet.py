"""A small convolutional network: an image to one feature vector, for classification.

A stack of 3x3 convolutions (Simonyan & Zisserman 2015, arXiv:1409.1556) with batch normalisation (Ioffe & Szegedy 2015,
arXiv:1502.03167). The features are averaged over all positions instead of going through dense layers (Lin et al. 2014,
arXiv:1312.4400). Each stage has `depth` convolutions of one width. Between two stages, max pooling halves the image,
odd sizes rounded up.

B images y (B, C, H, W) in [-1, 1]; D features.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError

CONFIGURABLE = {"net": ("ConvNet",)}


class ConvNet(nn.Module):
    """Images (B, C, H, W) -> features (B, D), 0 or more. `widths`: channels of each stage; the last is D."""

    adamw_weights = ("layers.0.weight",)  # read the image: not for Muon

    def __init__(self, *, spec: ImageSpec, widths: Sequence[int] = (32, 64, 128), depth: int = 2) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or depth < 1:
            raise RequestError(f"ConvNet needs widths >= 1 and depth >= 1, got {list(widths)} and {depth}")
        self.width = widths[-1]
        layers: list[nn.Module] = []
        channels = spec.channels
        for stage, width in enumerate(widths):
            layers += [nn.MaxPool2d(2, ceil_mode=True)] if stage else []
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.layers(y).mean((2, 3))
