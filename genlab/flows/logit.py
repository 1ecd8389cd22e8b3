"""The logit layer, from the range of the pixels to all real numbers: z = logit(alpha + (1 - 2 alpha) y / K).

Dinh et al. 2017 (arXiv:1605.08803, sec. 4.1), who use alpha = 0.05. With our default of 0 the flow has a density only
on (0, K)^D, so the probabilities of all images sum to 1. The bins of black and white, which contain many pixels, become
infinitely long. The log-determinant includes the scale of the pixels (the factor 1/K).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core import RequestError
from genlab.flows.layer import Layer, total

CONFIGURABLE = {"squash": ("Logit",)}


class Logit(Layer):
    """(0, K) -> real numbers, elementwise. `levels`: K. `alpha`: 0 or more, below 0.5."""

    def __init__(self, *, levels: int, alpha: float = 0.0) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise RequestError(f"alpha={alpha} is the margin left at either end of the range: 0 or more, below 0.5")
        self.levels, self.alpha = levels, alpha

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (B, …) in (0, K) -> the same shape."""
        p = self.alpha + (1 - 2 * self.alpha) * y / self.levels
        z = torch.logit(p)
        return z, total(-F.logsigmoid(z) - F.logsigmoid(-z) + math.log((1 - 2 * self.alpha) / self.levels))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, …) -> the same shape. With alpha > 0, values can be outside (0, K)."""
        return (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha) * self.levels
