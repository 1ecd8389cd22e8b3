"""MADE for real numbers: two features of every unit that depend on earlier units alone (Germain et al. 2015,
arXiv:1502.03509; for densities of reals Papamakarios et al. 2017, arXiv:1705.07057).

A multilayer perceptron whose masks leave only paths from earlier units to later features, as in `made.py`. There the
units are pixels; here they are the L numbers of a latent z, and one network of this kind is a prior of z. The last
layer begins at 0. There is one order of the units, the one in which z lists them.

L units; leading dimensions of any kind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.nets.layers.masked_linear import MaskedLinear, even_degrees

CONFIGURABLE = {"prior": ("RealMADE",)}


class RealMADE(nn.Module):
    """Reals (..., L) -> two features of every unit (..., 2 L): first one of each unit, then the other of each.

    `units`: L; `width`: units of a hidden layer; `depth`: number of hidden layers. Raises RequestError for impossible
    sizes.
    """

    of_reals = True  # what a family must know before it builds a prior: not a model of integers

    def __init__(self, *, units: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        if min(units, width, depth) < 1:
            raise RequestError(
                f"an autoregressive prior needs width and depth of at least 1, got width={width} and depth={depth}"
            )
        # A hidden unit of degree d depends on the first d units; the features of unit i, counted from 0, on i units.
        degrees = even_degrees(width, max(1, units - 1))
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [MaskedLinear(degrees if i else torch.arange(1, units + 1), degrees), nn.ReLU()]
        self.layers = nn.Sequential(*layers, last := MaskedLinear(degrees, torch.arange(units).repeat(2)))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, z: Tensor) -> Tensor:
        """(..., L) -> (..., 2 L)."""
        out: Tensor = self.layers(z)
        return out
