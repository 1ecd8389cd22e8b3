"""A code without a penalty (dense), and codes with a penalty on their activations: L1, L2, and the KL of Bernoullis.

L1: Olshausen & Field 1996. A small h and large decoder weights would avoid a penalty on |h|, so the decoder's columns
are kept at length 1 (`unit_columns`). L2 does the same; it shrinks large values but makes none exactly zero.

KL: Ng 2011 (CS294A notes, "Sparse autoencoder"). The mean activation rho_j of every unit should be rho:
    beta * sum_j KL(rho || rho_j),   KL(a || b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)).
Ours takes rho_j from a running mean over batches, so that it is useful for small batches, too. Its gradient is that of
the mean of the current batch. On several processes the mean is over the batches of all of them, so that the objective
is that of a single process.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genlab.codes.code import Coded
from genlab.core import RequestError

CONFIGURABLE = {"code": ("Dense", "KL", "L1", "L2")}

ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Dense(nn.Module):
    """h = activation(a) without a penalty. A small number of units makes it a bottleneck."""

    inputs, unit_columns = 1, False

    def __init__(self, *, units: int, activation: str = "identity") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise RequestError(f"activation={activation} is not known: choose from {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]()
        self.threshold = 0.5 if activation == "sigmoid" else 0.0
        self.targets: dict[str, float] = {}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        return Coded(self.activation(a), a.new_zeros(len(a)))


class Penalised(nn.Module):
    """h = relu(a) with the penalty weight * sum_j |h_j|^power."""

    inputs, unit_columns, threshold = 1, True, 0.0

    def __init__(self, *, units: int, weight: float, power: int) -> None:
        super().__init__()
        if weight < 0:
            raise RequestError(f"the weight of a penalty must be 0 or more, got {weight}")
        self.weight, self.power = weight, power
        self.targets: dict[str, float] = {}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        h = a.relu()
        return Coded(h, self.weight * h.pow(self.power).sum(1))


class L1(Penalised):
    """h = relu(a) with the penalty weight * sum_j |h_j|."""

    def __init__(self, *, units: int, weight: float) -> None:
        super().__init__(units=units, weight=weight, power=1)


class L2(Penalised):
    """h = relu(a) with the penalty weight * sum_j h_j^2."""

    def __init__(self, *, units: int, weight: float) -> None:
        super().__init__(units=units, weight=weight, power=2)


class KL(nn.Module):
    """h = sigmoid(a) with the penalty weight * sum_j KL(target || mean of unit j).

    `momentum`: of the running mean over batches.
    """

    inputs, unit_columns, threshold = 1, False, 0.5

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
        self.targets = {"mean_activation": target}

    def forward(self, a: Tensor) -> Coded:
        """(B, L) -> the code."""
        h = a.sigmoid()
        mean = h.mean(0)
        if self.training and torch.is_grad_enabled():  # without gradients this is not a training step
            self._follow(mean.detach().to(self.running.dtype))
        rate = self.running + mean - mean.detach()  # the value of the running mean, the gradient of the batch's mean
        return Coded(h, (self.weight * bernoulli_kl(self.target, rate).sum()).expand(len(h)))

    def _follow(self, mean: Tensor) -> None:
        """Move the running mean towards the mean of a batch (L,), averaged over all processes."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        with torch.no_grad():
            self.running.lerp_(mean, 1 - self.momentum)


def bernoulli_kl(a: float, b: Tensor) -> Tensor:
    """KL(Bernoulli(a) || Bernoulli(b)) in nats, elementwise, for 0 < a < 1. It is finite also for b = 0 and b = 1."""
    b = b.clamp(1e-6, 1 - 1e-6)
    return a * (math.log(a) - b.log()) + (1 - a) * (math.log1p(-a) - (-b).log1p())
