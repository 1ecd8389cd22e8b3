"""Codes in which units compete, for each image (top-k) or over a batch (lifetime).

Top-k: k-sparse autoencoders (Makhzani & Frey 2014, arXiv:1312.5663). The code is linear, and every image keeps its k
largest units. Lifetime: winner-take-all autoencoders (Makhzani & Frey 2015, arXiv:1409.2752). Every unit keeps its
largest activations, those of a fixed share of the images of a batch, so every unit is used and none can die. In
evaluation mode it is a ReLU. In both codes only the units that are kept get a gradient.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from genlab.codes.code import Coded
from genlab.core import RequestError

CONFIGURABLE = {"code": ("Lifetime", "TopK")}


class TopK(nn.Module):
    """Keeps the k largest units of an image and sets the others to zero, in training and evaluation mode."""

    inputs, unit_columns, threshold = 1, False, 0.0

    def __init__(self, *, units: int, k: int) -> None:
        super().__init__()
        if not 1 <= k <= units:
            raise RequestError(f"the topk code needs k between 1 and its {units} units, got k={k}")
        self.k, self.targets = k, {"active": k / units}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        winners = a.topk(self.k, 1).indices
        return Coded(a.new_zeros(a.shape).scatter(1, winners, a.gather(1, winners)), a.new_zeros(len(a)))


class Lifetime(nn.Module):
    """In training mode keeps the ceil(share * B) largest activations of every unit over a batch; else relu(a).

    On several processes, each keeps the largest activations of its own batch.
    """

    inputs, unit_columns, threshold = 1, False, 0.0

    def __init__(self, *, units: int, share: float) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise RequestError(f"the lifetime code needs 0 < share <= 1, got share={share}")
        self.share, self.targets = share, {"active": share}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        if not self.training:
            return Coded(a.relu(), a.new_zeros(len(a)))
        count = math.ceil(round(self.share * len(a), 6))  # 0.07 * 100 is 7.000000000000001
        winners = a.topk(count, 0).indices
        return Coded(a.new_zeros(a.shape).scatter(0, winners, a.gather(0, winners)), a.new_zeros(len(a)))
