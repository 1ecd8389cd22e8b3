"""Linear maps with a mask (Germain et al. 2015, arXiv:1502.03509, eq. 7): some outputs do not read some inputs.

Every input and output has a degree, the number of generation steps that it depends on. An output of degree d reads the
inputs of degree d or less.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """(..., n) -> (..., m), from the degrees of the inputs, integers (n,), and of the outputs (m,)."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__(len(inputs), len(outputs))
        # Not part of the state, because it can be derived. Applied in the computation, so no optimiser can undo it.
        self.register_buffer("mask", (outputs[:, None] >= inputs).float(), persistent=False)

    @property
    def masked_weight(self) -> Tensor:
        """What the input is multiplied with, (m, n)."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        return F.linear(x, self.masked_weight, self.bias)


def even_degrees(units: int, most: int) -> Tensor:
    """Degrees 1..`most` for a layer, as even as possible, in ascending order (units,)."""
    return 1 + torch.arange(units) * most // units
