"""The chain rule over the values of a step: each is a softmax over the K levels, given the values before.

Heads with several values a step use it at temperatures other than 1. At a temperature T, each conditional p(x_i | x_<i)
is raised to the power 1 / T and normalised over the K levels. This is exact, but slower than the sampler of the head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.heads.categorical import CategoricalPixels


class ChainPixels:
    """c values a step. `logits` maps a list of the i earlier values, (...) each, to the logits (..., K) of value i."""

    def __init__(self, logits: Callable[[list[Tensor]], Tensor], channels: int, temperature: float = 1.0) -> None:
        self.logits, self.channels, self.temperature = logits, channels, temperature

    def conditional(self, before: list[Tensor]) -> CategoricalPixels:
        """The earlier integers, (...) each -> the distribution of the next value."""
        pixels = CategoricalPixels(self.logits(before))
        return pixels if self.temperature == 1 else pixels.tempered(self.temperature)

    def tempered(self, temperature: float) -> ChainPixels:
        """Every conditional to the power 1 / temperature, normalised; temperatures multiply."""
        return ChainPixels(self.logits, self.channels, self.temperature * temperature)

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., c) -> nats (...,). Raises ValueError for another shape."""
        if x.shape[-1] != self.channels:
            raise ValueError(f"values {tuple(x.shape)} do not match {self.channels} values per step")
        values = list(x.unbind(-1))
        each = [self.conditional(values[:i]).log_prob(value.unsqueeze(-1)) for i, value in enumerate(values)]
        return torch.stack(each).sum(0)

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., z), z >= c, in [0, 1) -> integers (..., c), from the last c numbers."""
        values: list[Tensor] = []
        for uniform in noise.split(1, -1)[-self.channels :]:
            values.append(self.conditional(values).sample(uniform).squeeze(-1))
        return torch.stack(values, -1)

    def mean(self) -> Tensor:
        """Expected level (..., c) of every value, given that each earlier value is at the level nearest to its mean."""
        values: list[Tensor] = []
        means: list[Tensor] = []
        for _ in range(self.channels):
            means.append(self.conditional(values).mean().squeeze(-1))
            values.append(means[-1].round().long())
        return torch.stack(means, -1)
