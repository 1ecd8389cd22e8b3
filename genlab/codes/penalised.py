"""Codes that are left as they are, or are charged for what they use: dense, L1, L2, and the KL of Bernoullis.

L1: Olshausen & Field 1996. Charging |h| alone can be dodged, by a small h and large decoder weights, so the decoder's
columns are kept at length 1 (`unit_columns`). L2 likewise: it shrinks large values, and pushes none to exactly zero.
KL: Ng 2011 (CS294A notes, "Sparse autoencoder"): every unit is to be on for a share rho of the images,
    beta * sum_j KL(rho || rho_j),   KL(a || b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)).
Ours takes rho_j from a running mean over batches, so that small batches say something, with the gradient of the
batch's own mean. The batch is that of all processes together: several give the objective that one would give.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genlab.codes.code import Coded
from genlab.core import RequestError

ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Dense(nn.Module):
    """h = activation(a), free of charge: what makes it a bottleneck is a small L."""

    inputs, unit_columns = 1, False

    def __init__(self, *, units: int, activation: str = "identity") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise RequestError(f"activation={activation} is not known: choose from {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]()
        self.on = 0.5 if activation == "sigmoid" else 0.0
        self.asked: dict[str, float] = {}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        return Coded(self.activation(a), a.new_zeros(len(a)))


class Penalised(nn.Module):
    """h = relu(a) at the price of weight * sum |h|^power."""

    inputs, unit_columns, on = 1, True, 0.0

    def __init__(self, *, units: int, weight: float, power: int) -> None:
        super().__init__()
        if weight < 0:
            raise RequestError(f"the weight of a penalty must be 0 or more, got {weight}")
        self.weight, self.power = weight, power
        self.asked: dict[str, float] = {}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        h = a.relu()
        return Coded(h, self.weight * h.pow(self.power).sum(1))


class L1(Penalised):
    """h = relu(a) at the price of weight * sum |h|."""

    def __init__(self, *, units: int, weight: float) -> None:
        super().__init__(units=units, weight=weight, power=1)


class L2(Penalised):
    """h = relu(a) at the price of weight * sum h^2."""

    def __init__(self, *, units: int, weight: float) -> None:
        super().__init__(units=units, weight=weight, power=2)


class KL(nn.Module):
    """h = sigmoid(a) at the price of weight * sum_j KL(target || mean of unit j)."""

    inputs, unit_columns, on = 1, False, 0.5

    running: Tensor

    def __init__(self, *, units: int, target: float, weight: float, momentum: float = 0.9) -> None:
        super().__init__()
        if not (0 < target < 1 and weight >= 0 and 0 <= momentum < 1):
            raise RequestError(
                f"the kl code needs 0 < target < 1, weight >= 0 and 0 <= momentum < 1, "
                f"got target={target}, weight={weight}, momentum={momentum}"
            )
        self.target, self.weight, self.momentum = target, weight, momentum
        self.register_buffer("running", torch.full((units,), target))
        self.asked = {"mean_activation": target}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        h = a.sigmoid()
        mean = h.mean(0)
        if self.training and torch.is_grad_enabled():  # a look without gradients is no step of training
            self._follow(mean.detach().to(self.running.dtype))
        rate = self.running + mean - mean.detach()  # the running value with the batch's gradient
        return Coded(h, (self.weight * bernoulli_kl(self.target, rate).sum()).expand(len(h)))

    def _follow(self, mean: Tensor) -> None:
        """Move the running mean towards a batch's (L,), the same on every process."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        with torch.no_grad():
            self.running.lerp_(mean, 1 - self.momentum)


def bernoulli_kl(a: float, b: Tensor) -> Tensor:
    """KL(Bernoulli(a) || Bernoulli(b)), nats, elementwise; 0 < a < 1; finite for every b that rounding may produce."""
    b = b.clamp(1e-6, 1 - 1e-6)
    return a * (math.log(a) - b.log()) + (1 - a) * (math.log1p(-a) - (-b).log1p())
