"""Logistic mixture head of PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017, arXiv:1701.05517, sec. 2.1-2.2).

A pixel is drawn from one of M components, the same for all its channels; in a component channel i is a discretised
logistic whose mean is shifted by the earlier channels, mu_i + sum_{j<i} c_ij x_j, with c_ij = tanh(.) of the features.

Ours differs from the paper. It takes any number of channels. The probability of every level is exact
(`discretised.py`). A drawn channel is rounded to its level before the next one is conditioned on it; the official
sampler omits that, and so does not follow the likelihood. The means of the components start evenly spread over [-1, 1],
whatever the features.

Parameters are groups of M rows: the component logits; C means; C log scales; P coefficients of every channel for the
channels after it, in the order c_10, c_20, …, c_21, …
C channels, M components, N pixels, K levels, D features. P = C (C - 1) / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.heads.chain import ChainPixels
from genlab.heads.discretised import (
    draw,
    expected,
    log_mass,
    nearest,
    pixels_last,
    project,
    rate,
    scaled,
    small_batches,
)

CONFIGURABLE = {"head": ("LogisticMixture",)}


class LogisticMixture(nn.Module):
    """Features (..., D) -> the joint distribution of the channels of a pixel (..., C).

    A sample takes one uniform number for the component and one for each channel. log s is at least -7, as in the paper.
    """

    chains_colours = True

    def __init__(self, *, width: int, channels: int, levels: int, components: int = 10) -> None:
        super().__init__()
        if components < 1:
            raise RequestError(f"the logistic mixture needs at least 1 component, got components={components}")
        self.channels, self.levels, self.components = channels, levels, components
        self.noise_size = 1 + channels
        groups = 1 + 2 * channels + channels * (channels - 1) // 2
        self.proj = nn.Linear(width, groups * components)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        with torch.no_grad():
            bias = self.proj.bias.view(groups, components)
            bias[1 : 1 + channels] = (2 * torch.arange(components) + 1) / components - 1
            bias[1 + channels : 1 + 2 * channels] = -1.5

    @torch.no_grad()
    def predict(self, weights: Tensor) -> None:
        """Let the means start at `weights` (C, k) times the last k features, and the components close to them."""
        groups = self.proj.weight.view(-1, self.components, self.proj.in_features)
        groups[1 : 1 + self.channels, :, -weights.shape[1] :] = weights[:, None]
        bias = self.proj.bias.view(-1, self.components)
        bias[1 : 1 + self.channels] *= 0.2
        bias[1 + self.channels : 1 + 2 * self.channels] = -3.0

    def forward(self, h: Tensor) -> LogisticMixturePixels:
        """Features (..., D) -> the distribution of the values."""
        return self._pixels(project(h, self.proj.weight, self.proj.bias), h.shape[:-1])

    def for_steps(self) -> Callable[[Tensor], LogisticMixturePixels]:
        """`forward` for many small batches (B, D), with weights laid out once."""
        parameters = small_batches(self.proj.weight, self.proj.bias)
        return lambda h: self._pixels(parameters(h), h.shape[:-1])

    def _pixels(self, parameters: Tensor, lead: tuple[int, ...]) -> LogisticMixturePixels:
        groups = parameters.view(-1, self.components, parameters.shape[-1])
        return LogisticMixturePixels(groups, lead, self.channels, self.levels)


class LogisticMixturePixels:
    """A joint distribution of C values. Parameters (1 + 2C + P, M, N), on [-1, 1], in the order described above."""

    def __init__(self, parameters: Tensor, lead: tuple[int, ...], channels: int, levels: int) -> None:
        self.parameters, self.lead, self.channels, self.levels = parameters, lead, channels, levels

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., C) -> nats (...,). Raises ValueError for another shape."""
        x = pixels_last(x, self.lead, self.channels, self.parameters.dtype)
        weights, mu, log_s, coefficients = self._parts(self.parameters)
        if self.channels > 1:
            mu = torch.stack(self._means(mu, coefficients, scaled(x, self.levels)))
        each = log_mass(x[:, None], mu, log_s, self.levels).sum(0)
        return (torch.logsumexp(weights + each, 0) - torch.logsumexp(weights, 0)).view(self.lead)

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., 1 + C) in [0, 1) -> integers (..., C): the component, then one channel after another.

        All channels are drawn at once. Then each is shifted like its mean, which depends on the earlier channels, and
        rounded.
        """
        uniform = noise.reshape(-1, 1 + self.channels).T.to(self.parameters.dtype)
        cdf = self.parameters[0].softmax(0).cumsum(0)
        chosen = (cdf <= uniform[0] * cdf[-1]).sum(0)  # below M: see categorical.py
        _, mu, log_s, coefficients = self._parts(self.parameters.gather(1, chosen.expand(len(self.parameters), 1, -1)))
        remaining, values = draw(uniform[1:], mu.squeeze(1), log_s.squeeze(1), self.levels), []
        for i in range(self.channels):
            values.append(nearest(remaining[0], self.levels))
            if i + 1 < self.channels:
                remaining = self._given_value(remaining, coefficients.squeeze(1), i, values[i] - (self.levels - 1) / 2)
        return torch.stack(values, -1).long().view(*noise.shape[:-1], self.channels)

    def tempered(self, temperature: float) -> ChainPixels:
        """Every conditional p(x_i | x_<i), a mixture, to the power 1 / temperature: exact over K levels, but slow."""
        return ChainPixels(self.next_logits, self.channels, temperature)

    def mean(self) -> Tensor:
        """Expected level (..., C). In every component, each channel is conditioned on the expected earlier channels.

        This is exact for the first channel. For the others it is nearly exact if their components have little mass
        beyond black and white.
        """
        weights, remaining, log_s, coefficients = self._parts(self.parameters)
        means = []
        for i in range(self.channels):
            means.append(expected(remaining[0], log_s[i], self.levels))
            if i + 1 < self.channels:
                remaining = self._given_value(remaining, coefficients, i, scaled(means[i], self.levels))
        return (weights.softmax(0) * torch.stack(means)).sum(1).T.reshape(*self.lead, self.channels)

    def next_logits(self, before: list[Tensor]) -> Tensor:
        """log p(x_i | x_<i) of every level (..., K): components are weighted by their probability of the earlier
        values.
        """
        weights, mean, log_s = self._next(before)
        all_levels = torch.arange(self.levels, device=weights.device, dtype=weights.dtype)[:, None, None]
        each = log_mass(all_levels, mean, log_s, self.levels)  # (K, M, N)
        return torch.logsumexp(weights.log_softmax(0) + each, 1).T.reshape(*self.lead, self.levels)

    def next_below(self, before: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """A function from edges (E, N), levels of N pixels, to P(x_i < edge | x_<i), (E, N).

        A few edges cost a fraction of all K logits.
        """
        weights, mean, log_s = self._next(before)
        weights, steepness = weights.softmax(0), rate(log_s, self.levels)
        half = (self.levels - 1) / 2
        shift = (half * mean + (half + 0.5)) * steepness
        return lambda edges: (torch.sigmoid(edges[:, None] * steepness - shift) * weights).sum(1)

    def _next(self, before: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log scales of the components (M, N) of the next value, given the values before."""
        weights, mu, log_s, coefficients = self._parts(self.parameters)
        x = [value.reshape(-1).to(mu.dtype) for value in before]
        means = self._means(mu, coefficients, [scaled(value, self.levels) for value in x])
        for i, value in enumerate(x):
            weights = weights + log_mass(value, means[i], log_s[i], self.levels)
        return weights, means[-1], log_s[len(x)]

    def _parts(self, groups: Tensor) -> tuple[Tensor, ...]:
        """Component logits (M, N), means and log scales (C, M, N), coefficients (P, M, N) between -1 and 1."""
        c = self.channels
        weights, mu, log_s, coefficients = groups.split([1, c, c, c * (c - 1) // 2])
        return weights.squeeze(0), mu, log_s, coefficients.tanh() if c > 1 else coefficients

    def _means(self, mu: Tensor, coefficients: Tensor, values: Iterable[Tensor]) -> list[Tensor]:
        """Means (C, M, N) and values (N,), on [-1, 1], of the first i channels -> means (M, N) of the first i + 1."""
        means = [mu[0]]
        for i, value in enumerate(values):
            if i + 1 < self.channels:
                mu = self._given_value(mu, coefficients, i, value)
                means.append(mu[0])
        return means

    def _given_value(self, remaining: Tensor, coefficients: Tensor, i: int, value: Tensor) -> Tensor:
        """Means of channels i, i+1, … -> those of channels i+1, … given value i, (N,) or (M, N), 0 in the middle."""
        after = self.channels - 1 - i
        start = i * (2 * self.channels - 1 - i) // 2
        return torch.addcmul(remaining[1:], coefficients[start : start + after], value)
