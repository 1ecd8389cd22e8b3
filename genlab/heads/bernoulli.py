"""Bernoulli head: one logit for a binary value, as for binarised MNIST (van den Oord et al. 2016, arXiv:1601.06759).

It is a likelihood for two levels only. For grey values in [0, 1] the same formula is not normalised, so images with
more levels are an error. Ours starts the projection at zero, so that an untrained model costs exactly 1 bit per value.

c values a step, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.heads.categorical import linear

CONFIGURABLE = {"head": ("Bernoulli",)}


class Bernoulli(nn.Module):
    """Features (..., D) -> c binary values (..., c). A sample takes one uniform number per value.

    Several values a step are independent given the features, which suits a decoder. A net that orders the colours of a
    pixel has c = 1. Raises RequestError unless there are 2 levels.
    """

    chains_colours = False
    independent = True

    def __init__(self, *, width: int, channels: int, levels: int) -> None:
        super().__init__()
        if levels != 2:
            raise RequestError(
                f"model/head=bernoulli needs images of 2 levels, not {levels}: "
                "use data=mnist_binary, or model/head=categorical"
            )
        self.noise_size = channels
        self.proj = nn.Linear(width, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, h: Tensor) -> BernoulliPixels:
        """Features (..., D) -> the distribution of the values."""
        return BernoulliPixels(linear(h, self.proj.weight, self.proj.bias))

    def for_steps(self) -> Callable[[Tensor], BernoulliPixels]:
        """`forward` for many small batches (B, D), with weights transposed once."""
        weight, bias = self.proj.weight.T.contiguous(), self.proj.bias
        return lambda h: BernoulliPixels(torch.addmm(bias, h, weight))


class BernoulliPixels:
    """Independent binary values; logits (..., c) of the value 1."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits if logits.dtype == torch.double else logits.float()

    def tempered(self, temperature: float) -> BernoulliPixels:
        """The distribution proportional to p(x)^(1 / temperature), exact."""
        return BernoulliPixels(self.logits / temperature)

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., c) -> nats (...,). Raises ValueError for another shape."""
        if x.shape != self.logits.shape:
            raise ValueError(f"values {tuple(x.shape)} do not match logits {tuple(self.logits.shape)}")
        return F.logsigmoid(torch.where(x.bool(), self.logits, -self.logits)).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., c) in [0, 1) -> integers (..., c)."""
        return (noise < self.logits.sigmoid()).long()

    def next_logits(self, before: list[Tensor]) -> Tensor:
        """Logits (..., 2) of the next value, which does not depend on the values before."""
        logit = self.logits[..., len(before)]
        return torch.stack([torch.zeros_like(logit), logit], -1)

    def mean(self) -> Tensor:
        """Expected level (..., c)."""
        return self.logits.sigmoid()
