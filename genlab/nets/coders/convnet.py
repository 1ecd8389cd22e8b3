"""A small convolutional network that reads a whole image: 3x3 convolutions, pooling, one vector at the end.

The plain stack of Simonyan & Zisserman (2015, arXiv:1409.1556) with batch normalisation (Ioffe & Szegedy 2015,
arXiv:1502.03167) and a mean over places instead of dense layers (Lin et al. 2014, arXiv:1312.4400). Each stage has
`depth` convolutions of one width and ends by halving the image, odd sizes rounded up, except for the last.

B images y (B, C, H, W) in [-1, 1]; D features.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError


class ConvNet(nn.Module):
    """Images (B, C, H, W) -> features (B, D), none below 0. `widths`: channels of each stage, the last of them is D."""

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
