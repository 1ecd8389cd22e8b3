"""Spike-and-slab codes: a unit is either exactly zero or has a Gaussian value (Tonolini et al. 2020, arXiv:1905.13590).

    q(h_j | x) = g N(m, s^2) + (1 - g) delta_0       prior: share N(0, 1) + (1 - share) delta_0
    KL = g [ (m^2 + s^2 - 1 - ln s^2) / 2 + ln(g / share) ] + (1 - g) ln((1 - g) / (1 - share))

The encoder gives m, ln s^2 and the logit of g for every unit. The KL has this closed form. In training mode the gate is
drawn from a relaxation with a gradient (binary concrete, Maddison et al. 2017, arXiv:1611.00712). In evaluation mode it
is open where g > 1/2, and then h = m.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.codes.code import Coded
from genlab.core import RequestError

CONFIGURABLE = {"code": ("SpikeSlab",)}


class SpikeSlab(nn.Module):
    """Mean, log-variance and gate logit of every unit, (B, 3 L) -> code (B, L) with the penalty weight * KL.

    `share`: probability of an open gate under the prior. `temperature`: of the relaxed gates; near 0 they are almost 0
    or 1, and their gradients large.
    """

    inputs, unit_columns, threshold = 3, False, 0.0

    def __init__(self, *, units: int, share: float, weight: float = 1.0, temperature: float = 0.5) -> None:
        super().__init__()
        if not (0 < share < 1 and weight >= 0 and temperature > 0):
            raise RequestError(
                f"the spike_slab code needs 0 < share < 1, weight >= 0 and temperature > 0, "
                f"got share={share}, weight={weight}, temperature={temperature}"
            )
        self.share, self.weight, self.temperature = share, weight, temperature
        self.targets = {"active": share}

    def forward(self, a: Tensor) -> Coded:
        """(B, 3 L) -> the code."""
        mean, log_var, logit = a.chunk(3, 1)
        log_var = log_var.clamp(-10, 10)  # so that the variance neither vanishes nor overflows
        penalty = self.weight * kl(mean, log_var, logit, self.share).sum(1)
        if not self.training:
            return Coded(mean * (logit > 0), penalty)
        u = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
        gate = ((logit + u.log() - (-u).log1p()) / self.temperature).sigmoid()
        # A relaxed gate is never exactly 0, so active units are counted by their probabilities.
        active = logit.sigmoid().mean(1)
        return Coded(gate * (mean + (log_var / 2).exp() * torch.randn_like(mean)), penalty, active)


def kl(mean: Tensor, log_var: Tensor, logit: Tensor, share: float) -> Tensor:
    """KL from the spike-and-slab posterior to its prior, in nats, elementwise. The gate is sigmoid(logit).

    It is computed from the logit, because the logarithm of a gate that is rounded to 0 or 1 has no finite gradient.
    """
    slab = (mean.square() + log_var.exp() - 1 - log_var) / 2
    open_gate = slab + F.logsigmoid(logit) - math.log(share)
    closed_gate = F.logsigmoid(-logit) - math.log1p(-share)
    return logit.sigmoid() * open_gate + (-logit).sigmoid() * closed_gate
