"""Categorical head: a softmax over the K levels of a value (van den Oord et al. 2016, arXiv:1601.06759, sec. 3).

It assumes nothing about the shape of the distribution and can learn several modes, spikes and one-sided distributions.
Ours starts the projection at zero, so that an untrained model costs exactly log2 K bits per value.

D features, K levels. Leading dimensions can be any: (B, T, D) for all steps of images, (B, D) for one sampling step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import RequestError

CONFIGURABLE = {"head": ("Categorical",)}


class Categorical(nn.Module):
    """Features (..., D) -> softmax over the K levels of one value (..., 1). Samples take one uniform number per value.

    Raises RequestError for several values a step.
    """

    chains_colours = False  # one value a step: the net orders the colours
    noise_size = 1

    def __init__(self, *, width: int, channels: int, levels: int) -> None:
        super().__init__()
        if channels != 1:
            raise RequestError(
                f"the categorical head predicts one value a step, not {channels} at once: "
                "it needs a net that orders the colours of a pixel"
            )
        self.proj = nn.Linear(width, levels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, h: Tensor) -> CategoricalPixels:
        """Features (..., D) -> the distribution of the value."""
        return CategoricalPixels(linear(h, self.proj.weight, self.proj.bias))

    def for_steps(self) -> Callable[[Tensor], CategoricalPixels]:
        """`forward` for many small batches (B, D), with weights transposed once, in a third of the time."""
        weight, bias = self.proj.weight.T.contiguous(), self.proj.bias
        return lambda h: CategoricalPixels(torch.addmm(bias, h, weight))


def linear(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Features (..., D) -> logits (..., n), in the precision of the weights also under autocast.

    In bfloat16 the logits would have only 8 bits of precision.
    """
    with torch.autocast(h.device.type, enabled=False):
        return F.linear(h.to(weight.dtype), weight, bias)


class CategoricalPixels:
    """A softmax over levels; logits (..., K)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits if logits.dtype == torch.double else logits.float()

    def tempered(self, temperature: float) -> CategoricalPixels:
        """The distribution proportional to p(x)^(1 / temperature), exact over the K levels."""
        return CategoricalPixels(self.logits / temperature)

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., 1) -> nats (...,). Raises ValueError for another shape."""
        if x.shape[:-1] != self.logits.shape[:-1]:  # cross_entropy would accept flattened tensors of another shape
            raise ValueError(f"values {tuple(x.shape)} do not match logits {tuple(self.logits.shape)}")
        nats = F.cross_entropy(self.logits.flatten(0, -2), x.flatten().long(), reduction="none")
        return -nats.view(x.shape[:-1])

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., 1) in [0, 1) -> integers (..., 1), by the inverse of the distribution function.

        This takes one random number per value instead of K as with Gumbel noise, and half the arithmetic.
        """
        cdf = self.logits.softmax(-1).cumsum(-1)
        # Noise is scaled by the last entry, which rounding leaves a little off 1. The product stays below that entry:
        # noise is at most 1 - 2^-24 in float32, and the rounded product at most the number before the entry. So no
        # level is out of range.
        last = cdf.narrow(-1, cdf.shape[-1] - 1, 1)
        return torch.searchsorted(cdf, noise.to(cdf.dtype) * last, right=True)

    def next_logits(self, before: list[Tensor]) -> Tensor:
        """Logits (..., K) of the only value."""
        return self.logits

    def mean(self) -> Tensor:
        """Expected level (..., 1)."""
        levels = torch.arange(self.logits.shape[-1], device=self.logits.device, dtype=self.logits.dtype)
        return (self.logits.softmax(-1) @ levels).unsqueeze(-1)
