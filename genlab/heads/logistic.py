"""Logistic head: one discretised logistic per value (Kingma et al. 2016, arXiv:1606.04934, app. C; the formula of
Salimans et al. 2017, arXiv:1701.05517).

Two numbers per value, mean and log scale, define one peak with a learnt width. Black and white take the tails.
Ours starts as a broad peak in the middle, the same for all features.

N pixels; c values a step, independent given the features; K levels; D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.heads.chain import ChainPixels
from genlab.heads.discretised import draw, expected, log_mass, nearest, pixels_last, project, small_batches

CONFIGURABLE = {"head": ("Logistic",)}


class Logistic(nn.Module):
    """Features (..., D) -> c values (..., c), each a discretised logistic. A sample takes one uniform number per value.

    Several values a step are independent given the features, which suits a decoder. A net that orders the colours of a
    pixel has c = 1. log s is at least -7, as in PixelCNN++.
    """

    chains_colours = False
    independent = True

    def __init__(self, *, width: int, channels: int, levels: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.noise_size = channels
        self.proj = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.proj.weight)
        with torch.no_grad():
            mean, log_s = self.proj.bias.view(2, channels)
            mean.zero_()
            log_s.fill_(-1.0)

    @torch.no_grad()
    def predict(self, weights: Tensor) -> None:
        """Let the means start at `weights` (c, k) times the last k features, and the scales small."""
        self.proj.weight[: self.channels, -weights.shape[1] :] = weights
        self.proj.bias[self.channels :] = -3.0

    def forward(self, h: Tensor) -> LogisticPixels:
        """Features (..., D) -> the distribution of the values."""
        return LogisticPixels(project(h, self.proj.weight, self.proj.bias), h.shape[:-1], self.levels)

    def for_steps(self) -> Callable[[Tensor], LogisticPixels]:
        """`forward` for many small batches (B, D), with weights laid out once."""
        parameters = small_batches(self.proj.weight, self.proj.bias)
        return lambda h: LogisticPixels(parameters(h), h.shape[:-1], self.levels)


class LogisticPixels:
    """Independent discretised logistics; parameters (2c, N): the means, then the log scales, on [-1, 1]."""

    def __init__(self, parameters: Tensor, lead: tuple[int, ...], levels: int) -> None:
        self.mu, self.log_s = parameters.chunk(2)
        self.lead, self.levels = lead, levels

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., c) -> nats (...,). Raises ValueError for another shape."""
        x = pixels_last(x, self.lead, len(self.mu), self.mu.dtype)
        return log_mass(x, self.mu, self.log_s, self.levels).sum(0).view(self.lead)

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., c) in [0, 1) -> integers (..., c)."""
        uniform = noise.reshape(-1, len(self.mu)).T.to(self.mu.dtype)
        return nearest(draw(uniform, self.mu, self.log_s, self.levels), self.levels).T.long().view(noise.shape)

    def tempered(self, temperature: float) -> ChainPixels:
        """The distribution of every value to the power 1 / temperature, exact over its K levels."""
        return ChainPixels(self.next_logits, len(self.mu), temperature)

    def mean(self) -> Tensor:
        """Expected level (..., c)."""
        return expected(self.mu, self.log_s, self.levels).T.reshape(*self.lead, -1)

    def next_logits(self, before: list[Tensor]) -> Tensor:
        """log P (..., K) of the next value, which does not depend on the values before."""
        i = len(before)
        all_levels = torch.arange(self.levels, device=self.mu.device, dtype=self.mu.dtype)
        nats = log_mass(all_levels, self.mu[i][:, None], self.log_s[i][:, None], self.levels)
        return nats.view(*self.lead, self.levels)
