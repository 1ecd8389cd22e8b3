"""A softmax for every channel of a pixel, independent of one another given the features.

It is the simplest joint distribution of a pixel's colours, and a wrong one: given the pixels before, the channels of
natural images depend on each other. It is here to be compared with heads that chain the colours
(`conditional_categorical`), as in the homework of the Berkeley course CS294-158.

C channels, D features, K levels. Leading dimensions can be any: (B, T, D) for all steps of images, (B, D) for one step.
"""

from __future__ import annotations

from torch import Tensor, nn

from genlab.heads.categorical import CategoricalPixels, linear

CONFIGURABLE = {"head": ("IndependentCategorical",)}


class IndependentCategorical(nn.Module):
    """Features (..., D) -> a softmax over the K levels of each of C channels. Samples take C uniform numbers a step."""

    chains_colours = True  # it gives the distribution of whole pixels

    def __init__(self, *, width: int, channels: int, levels: int) -> None:
        super().__init__()
        self.channels, self.levels, self.noise_size = channels, levels, channels
        self.proj = nn.Linear(width, channels * levels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, h: Tensor) -> IndependentPixels:
        """Features (..., D) -> the distribution of the pixel."""
        return IndependentPixels(linear(h, self.proj.weight, self.proj.bias).unflatten(-1, (self.channels, -1)))


class IndependentPixels:
    """Softmaxes over levels; logits (..., C, K)."""

    def __init__(self, logits: Tensor) -> None:
        self.each = CategoricalPixels(logits)

    def tempered(self, temperature: float) -> IndependentPixels:
        """The distribution proportional to p(x)^(1 / temperature), exact over the K levels."""
        return IndependentPixels(self.each.logits / temperature)

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., C) -> nats (...,). Raises ValueError for another shape."""
        return self.each.log_prob(x[..., None]).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., C) in [0, 1) -> integers (..., C)."""
        return self.each.sample(noise[..., None]).squeeze(-1)

    def next_logits(self, before: list[Tensor]) -> Tensor:
        """Logits (..., K) of the next channel. The channels `before` do not matter."""
        return self.each.logits[..., len(before), :]

    def mean(self) -> Tensor:
        """Expected levels (..., C)."""
        return self.each.mean().squeeze(-1)
