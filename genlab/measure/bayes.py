"""A class-conditional model as a Bayes classifier: p(y | x) is proportional to p(x | y) p(y).

p(y) are the shares of the classes among the training images. Of a model that bounds its likelihood, one draw of the
bound takes the place of log p(x | y). The likelihoods of an image's many values multiply, so the posterior is usually
too certain: see the expected calibration error (Guo et al. 2017, arXiv:1706.04599, 15 bins).

N images, M classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.measure.bits import log_marginal
from genlab.system.device import true_float32

BATCH = 100
BINS = 15


@dataclass(frozen=True)
class Bin:
    """Images whose largest p(y | x) lies in a bin: their number, mean confidence and accuracy."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class BayesResult:
    """Accuracy and its standard error over images, cross entropy in nats, expected calibration error, and the bins."""

    n: int
    accuracy: float
    standard_error: float
    cross_entropy: float
    calibration_error: float
    bins: list[Bin]

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2%} ± {self.standard_error:.2%}, cross entropy {self.cross_entropy:.4f} nats, "
            f"calibration error {self.calibration_error:.4f} ({self.n:,} images)"
        )


@torch.no_grad()
@true_float32()
def class_log_likelihoods(model: Any, images: Tensor, advance: Callable[[int], Any]) -> Tensor:
    """Images (N, C, H, W) -> log p(x | y) of every class, nats (N, M) float64."""
    rows = []
    for x in images.split(BATCH):
        x = x.to(model.device)
        columns = []
        for label in range(model.spec.classes):
            torch.manual_seed(0)  # the same noise for every class
            labels = torch.full((len(x),), label, device=x.device)
            columns.append(log_marginal(model, x, labels).cpu())
        rows.append(torch.stack(columns, 1))
        advance(len(x))
    return torch.cat(rows)


def classify(log_likelihoods: Tensor, labels: Tensor, counts: Tensor) -> BayesResult:
    """log p(x | y) (N, M), true labels (N,), and how often each class occurs in training (M,) -> the result."""
    log_prior = (counts.double() / counts.sum()).log()
    posterior = (log_likelihoods + log_prior).log_softmax(1)
    confidence, predicted = posterior.exp().max(1)
    right = (predicted == labels).double()
    n, accuracy = len(labels), right.mean().item()
    number = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = []
    for i in range(BINS):
        inside = number == i
        if count := int(inside.sum()):
            bins.append(Bin(count, confidence[inside].mean().item(), right[inside].mean().item()))
    return BayesResult(
        n, accuracy, math.sqrt(accuracy * (1 - accuracy) / n), -posterior.gather(1, labels[:, None]).mean().item(),
        sum(b.count / n * abs(b.accuracy - b.confidence) for b in bins), bins,
    )  # fmt: skip
