"""Encoder and decoder of linear layers: an image to a vector, and a vector to features of every step.

There is a ReLU between the layers. Without hidden layers both are linear maps, and the best autoencoder of them spans
the principal components (Baldi & Hornik 1989). Tied weights and columns of length 1 are in `tied.py`.

B images y (B, C, H, W) in [0, 1]; code h (B, L); T steps of c values, D features each: (B, T, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, RequestError
from genlab.nets.coders.tied import decoder_weights, remove_weights

CONFIGURABLE = {"net": ("MLPEncoder",), "encoder": ("MLPEncoder",), "decoder": ("MLPDecoder",)}


class MLPEncoder(nn.Module):
    """Images (B, C, H, W) -> vectors (B, `outputs`). `hidden`: widths of the layers in between."""

    adamw_weights = ("layers.0.weight",)  # read the image: not for Muon

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
    """Codes (B, `inputs`) -> features (B, T, D).

    `features`: D. `hidden`: widths of the layers in between; a mirror image of an encoder has its widths in reverse.
    `tied`, `unit_columns`: see `tied.py`.
    """

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
        self.steps, self.features = spec.dims // step_channels, features
        self.tied, self.unit_columns = tied, unit_columns
        self.layers = _linears([inputs, *hidden, self.steps * features])
        if tied:
            remove_weights(self.layers)

    def forward(self, h: Tensor, encoder: MLPEncoder | None = None) -> Tensor:
        """(B, L) -> (B, T, D)."""
        for i, (layer, weight) in enumerate(zip(self.layers, decoder_weights(self, encoder), strict=True)):
            h = F.linear(h.relu() if i else h, weight, layer.bias)  # type: ignore[arg-type]
        # The outputs are in the order in which the encoder reads an image, so that tied weights fit: (D, T).
        return h.view(len(h), self.features, self.steps).mT


def _linears(widths: Sequence[int]) -> nn.ModuleList:
    """Linear layers between these widths."""
    if min(widths) < 1:
        raise RequestError(f"layers need widths of 1 or more, got {list(widths)}")
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
