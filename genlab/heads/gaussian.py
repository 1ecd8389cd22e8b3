"""Gaussian heads: a normal variable rounded to the nearest of K levels. The outermost levels take the tails.

They are typical decoders of latent variable models (Kingma & Welling 2014, arXiv:1312.6114, app. C.2), and differ in
their standard deviation:

    GaussianFixed      a constant of the config; the loss is about a squared error, in nats
    GaussianLearned    one learnt number, or one per channel (the sigma-VAE, Rybkin et al. 2021, arXiv:2006.13202)
    GaussianFull       one for every value, computed by the net

Ours are probabilities of integers, never densities: the mass of the normal distribution between the edges of a level,

    log P = log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b))),    a, b = (x -+ d - mu) / s,    d = 1 / (K - 1),

computed on the side where Phi is small, so that no tail is lost. So their bits/dim can be compared with any other
head's. A density would grow without bound for a pixel that is always black; a mass does not.

N pixels, the last dimension; c values a step, independent given the features; K levels; D features.
mu and s on [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.special import log_ndtr, ndtr, ndtri

from genlab.core import RequestError
from genlab.heads.chain import ChainPixels
from genlab.heads.discretised import nearest, pixels_last, project, small_batches

CONFIGURABLE = {"head": ("GaussianFixed", "GaussianFull", "GaussianLearned")}

# Bounds of log s. At the floor one of 256 levels can have all the mass; at the ceiling the outermost levels have it.
FLOOR, CEILING = -7.0, 20.0
START = math.log(0.4)  # initial log s if it is learnt: a broad peak in the middle


class Gaussian(nn.Module):
    """Features (..., D) -> c values (..., c), each a discretised Gaussian. The base class of the three heads.

    A sample takes one uniform number per value. `by_net`: 1 if the net gives log s of every value, else 0. Several
    values a step are independent given the features, which suits a decoder. A net that orders the colours of a pixel
    has c = 1.
    """

    chains_colours = False
    independent = True
    by_net = 0

    def __init__(self, *, width: int, channels: int, levels: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.noise_size = channels
        self.proj = nn.Linear(width, (1 + self.by_net) * channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        with torch.no_grad():
            self.proj.bias[channels:] = START

    def log_scale(self) -> Tensor:
        """log s of the channels, (c, 1) or (1, 1), if the net does not give it."""
        raise NotImplementedError

    def forward(self, h: Tensor) -> GaussianPixels:
        """Features (..., D) -> the distribution of the values."""
        return self._pixels(project(h, self.proj.weight, self.proj.bias), h.shape[:-1])

    def for_steps(self) -> Callable[[Tensor], GaussianPixels]:
        """`forward` for many small batches (B, D), with weights laid out once."""
        parameters = small_batches(self.proj.weight, self.proj.bias)
        return lambda h: self._pixels(parameters(h), h.shape[:-1])

    def _pixels(self, parameters: Tensor, lead: tuple[int, ...]) -> GaussianPixels:
        mu, log_s = parameters.chunk(2) if self.by_net else (parameters, self.log_scale())
        return GaussianPixels(mu, log_s, lead, self.levels)


class GaussianFixed(Gaussian):
    """`sigma`: the standard deviation of every value, in units of the image's range.

    Raises RequestError unless above 0.
    """

    log_s: Tensor

    def __init__(self, *, width: int, channels: int, levels: int, sigma: float) -> None:
        super().__init__(width=width, channels=channels, levels=levels)
        if not 0 < sigma < math.inf:
            raise RequestError(f"model/head=gaussian_fixed needs sigma above 0, in units of the range, got {sigma}")
        self.register_buffer("log_s", torch.full((1, 1), math.log(2 * sigma)))

    def log_scale(self) -> Tensor:
        """(1, 1)."""
        return self.log_s


class GaussianLearned(Gaussian):
    """One learnt standard deviation, `per` image (one for all values) or channel."""

    def __init__(self, *, width: int, channels: int, levels: int, per: str = "image") -> None:
        super().__init__(width=width, channels=channels, levels=levels)
        if per not in ("image", "channel"):
            raise RequestError(f"model.head.per={per} is not known: choose image (one for all values) or channel")
        self.log_s = nn.Parameter(torch.full((channels if per == "channel" else 1, 1), START))

    def log_scale(self) -> Tensor:
        """(c, 1) or (1, 1)."""
        return self.log_s


class GaussianFull(Gaussian):
    """The net gives the standard deviation of every value."""

    by_net = 1


class GaussianPixels:
    """Independent discretised Gaussians: means (c, N), log scales that broadcast against them, on [-1, 1]."""

    def __init__(self, mu: Tensor, log_s: Tensor, lead: tuple[int, ...], levels: int) -> None:
        # float64: in a broad peak a level holds a millionth of the mass, the difference of two numbers near 1/2.
        self.mu, self.log_s = mu.double(), log_s.double().clamp(FLOOR, CEILING).expand(mu.shape)
        self.dtype = mu.dtype
        self.lead, self.levels = lead, levels

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., c) -> nats (...,). Raises ValueError for another shape."""
        x = pixels_last(x, self.lead, len(self.mu), torch.double)
        return log_mass(x, self.mu, self.log_s, self.levels).sum(0).view(self.lead).to(self.dtype)

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., c) in [0, 1) -> integers (..., c)."""
        uniform = noise.reshape(-1, len(self.mu)).T.double()
        half = (self.levels - 1) / 2
        value = half * (1 + self.mu + self.log_s.exp() * ndtri(uniform))
        return nearest(value, self.levels).T.long().view(noise.shape)

    def tempered(self, temperature: float) -> ChainPixels:
        """The distribution of every value to the power 1 / temperature, exact over its K levels."""
        return ChainPixels(self.next_logits, len(self.mu), temperature)

    def mean(self) -> Tensor:
        """Expected level (..., c): the sum of P(x > v) over v."""
        half = (self.levels - 1) / 2
        rate = (-self.log_s).exp() / half
        total = torch.zeros_like(self.mu)
        for v in range(self.levels - 1):
            total = total + ndtr((half * self.mu + (half - v - 0.5)) * rate)
        return total.T.reshape(*self.lead, -1).to(self.dtype)

    def next_logits(self, before: list[Tensor]) -> Tensor:
        """log P (..., K) of the next value, which does not depend on the values before."""
        i = len(before)
        all_levels = torch.arange(self.levels, device=self.mu.device, dtype=torch.double)
        nats = log_mass(all_levels, self.mu[i][:, None], self.log_s[i][:, None], self.levels)
        return nats.view(*self.lead, self.levels).to(self.dtype)


def log_mass(x: Tensor, mean: Tensor, log_s: Tensor, levels: int) -> Tensor:
    """log P, nats, of levels x (whole numbers in a float64 tensor), broadcast against mean and log s on [-1, 1]."""
    half = (levels - 1) / 2
    rate = (-log_s).exp() / half
    centre = half * (1 + mean)
    a, b = (x - 0.5 - centre) * rate, (x + 0.5 - centre) * rate
    right = a + b > 0  # then take the mirror image to the left of 0, which has the same mass
    low, high = log_ndtr(torch.where(right, -b, a)), log_ndtr(torch.where(right, -a, b))
    inside = high + (-torch.expm1(low - high)).log()
    return torch.where(x <= 0, log_ndtr(b), torch.where(x >= levels - 1, log_ndtr(-a), inside))
