"""Context: what an image is conditioned on, as features for every layer (van den Oord et al. 2016, arXiv:1606.05328).

A context part turns a label or a second image into features (B, E, h, w). They are 1 x 1 for a label, which holds for
the whole image (h in the paper's eq. 4), and H x W for a second image (s = m(h) in eq. 5). Every layer of a net adds a
linear map of the features (V_k h, or the unmasked 1x1 convolution V_k * s) to what it computes before its nonlinearity.
Masks concern the modelled image only: a layer may see the whole context, and p(x | context) stays exact.

B images, H x W pixels of the image being modelled, E context features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError

CONFIGURABLE = {"context": ("ImageContext", "LabelContext")}


class LabelContext(nn.Module):
    """Class labels (B,) -> their embedding (B, E, 1, 1). Raises RequestError for a data set without labels."""

    kind = "label"

    def __init__(self, *, spec: ImageSpec, width: int = 64) -> None:
        super().__init__()
        if not spec.classes:
            raise RequestError("model/context=label needs images with labels, and this data set has none")
        self.width = width
        self.embedding = nn.Embedding(spec.classes, width)

    def forward(self, label: Tensor) -> Tensor:
        """(B,) -> (B, E, 1, 1)."""
        return self.embedding(label)[:, :, None, None]


class ImageContext(nn.Module):
    """A second image (B, C', H', W'), integers -> features (B, E, H, W).

    `depth` residual 3x3 convolutions, dilated by 1, 2, 4, …, at the second image's own size: with 4 of them a feature
    sees 16 pixels in every direction. Their output is scaled to the size of the modelled image, and the coordinates of
    every pixel are added as channels. Raises RequestError for a data set without second images.
    """

    kind = "image"

    adamw_weights = ("first.weight",)  # read the image: not for Muon

    def __init__(self, *, spec: ImageSpec, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        if spec.context is None:
            raise RequestError(
                "model/context=image needs a second image to look at: add data/context=grey, lowres or half"
            )
        self.spec, self.source, self.width = spec, spec.context, width
        self.first = nn.Conv2d(self.source.channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=2**i, dilation=2**i) for i in range(depth)
        )  # fmt: skip
        self.last = nn.Conv2d(width + 2, width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C', H', W') integers -> (B, E, H, W)."""
        self.source.check(image)
        h = self.first(image.to(self.first.weight.dtype) * (2 / (self.source.levels - 1)) - 1)
        for block in self.blocks:
            h = h + block(h.relu())
        size = self.spec.height, self.spec.width
        h = F.interpolate(h, size, mode="nearest")
        place = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=h.dtype, device=h.device) for n in size), indexing="ij")
        return self.last(torch.cat([h.relu(), torch.stack(place).expand(len(h), -1, -1, -1)], 1))


class LayerBiases(nn.Module):
    """The maps V_k of all layers in one convolution: context features (B, E, h, w) -> (B, D_k, h, w) for every layer.

    `widths`: D_k of the layers. Without a context (`context_width` 0) there is nothing to learn, and layers get None.
    """

    def __init__(self, context_width: int, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths
        self.maps = nn.Conv2d(context_width, sum(widths), 1, bias=False) if context_width else None
        self.matrix_rows = {"maps.weight": widths}  # for Muon

    def check(self, context: Tensor | None) -> None:
        """Raise ValueError for context features where the net has none, and for missing ones where it has."""
        if (context is None) != (self.maps is None):
            raise ValueError("a net made with a context needs one, a net made without takes none")

    def forward(self, context: Tensor | None) -> list[Tensor | None]:
        """Context features (B, E, h, w) or None -> for every layer a bias (B, D_k, h, w) or None."""
        self.check(context)
        if context is None or self.maps is None:
            return [None] * len(self.widths)
        return list(self.maps(context).split(self.widths, 1))
