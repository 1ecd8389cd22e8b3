"""The discretised logistic distribution over integer levels, exactly (Salimans et al. 2017, arXiv:1701.05517, eq. 2).

A logistic variable with mean mu and scale s on [-1, 1] is rounded to the nearest of K levels. The outermost levels take
the tails. With a = (x - mu + d) / s, b = (x - mu - d) / s and d = 1 / (K - 1), half the distance between two levels,

    log P = logsigmoid(a) + logsigmoid(-b) + log(1 - e^-(a - b)).

For x = 0 only the first term is used, and for x = K - 1 only the second. The case is chosen by comparing integers, not
floats. The formula is sigmoid(a) - sigmoid(b) without cancellation. So it sums to 1, and needs neither the official
code's approximation in the tails (wrong by up to 2 nats) nor its clamps.

Ours computes in units of a level (2 d). In these units x +- 1/2 is exact, and the upper edge of a level equals the
lower edge of the next level to the bit. The three terms take one logarithm. We write the backward pass ourselves, and
it is finite everywhere.

The N pixels are the last dimension, so that each parameter is contiguous over all pixels. Numbers are float32 or
float64, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bounds of log s, beyond which the gradient is 0. The floor is the paper's: a level holds at most 0.97 of the mass for
# K = 256. Above the ceiling all mass is in the outermost levels anyway.
FLOOR, CEILING = -7.0, 20.0


def project(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Features (..., D), weight (n, D), bias (n,) -> parameters (n, N) of N pixels.

    Not in half precision: bfloat16 would round a mean near black or white to half a level.
    """
    dtype = torch.double if weight.dtype == torch.double else torch.float
    with torch.autocast(h.device.type, enabled=False):
        return torch.addmm(bias.to(dtype)[:, None], weight.to(dtype), h.reshape(-1, h.shape[-1]).to(dtype).T)


def small_batches(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """`project` for many small batches (B, D) in the precision of the weights, without autocast."""
    column, weight = bias[:, None].contiguous(), weight.contiguous()
    return lambda h: torch.addmm(column, weight, h.T)


def pixels_last(x: Tensor, lead: tuple[int, ...], channels: int, dtype: torch.dtype) -> Tensor:
    """Integers x (*lead, c) -> (c, N) of this dtype. Raises ValueError for another shape."""
    if x.shape != (*lead, channels):
        raise ValueError(f"values {tuple(x.shape)} do not match {channels} at each of {tuple(lead)}")
    return x.reshape(-1, channels).T.to(dtype)


def scaled(x: Tensor, levels: int) -> Tensor:
    """Levels 0..K-1 -> [-1, 1]."""
    return x * (2 / (levels - 1)) - 1


def log_mass(x: Tensor, mean: Tensor, log_s: Tensor, levels: int) -> Tensor:
    """log P, nats, of levels x (whole numbers in a float tensor), broadcast against mean and log s on [-1, 1]."""
    mean, log_s, _ = torch.broadcast_tensors(mean, log_s, x)  # x itself is not expanded
    return _LogMass.apply(x, mean, log_s, levels)  # type: ignore[no-any-return]


def rate(log_s: Tensor, levels: int) -> Tensor:
    """log s on [-1, 1] -> 1 / s in units of a level."""
    return (-math.log((levels - 1) / 2) - log_s.clamp(FLOOR, CEILING)).exp()


def draw(uniform: Tensor, mean: Tensor, log_s: Tensor, levels: int) -> Tensor:
    """Uniform numbers in [0, 1) -> logistic values in units of a level, not rounded."""
    half = (levels - 1) / 2
    return torch.addcmul(mean, log_s.clamp(FLOOR, CEILING).exp_(), uniform.logit()).mul_(half).add_(half)


def nearest(value: Tensor, levels: int) -> Tensor:
    """Values in units of a level -> the nearest levels, in a float tensor; the outermost levels take the tails."""
    return value.round().clamp_(0, levels - 1)


def expected(mean: Tensor, log_s: Tensor, levels: int) -> Tensor:
    """Expected level: the sum of P(x > v) over the K - 1 lowest levels v, one term in memory at a time."""
    half = (levels - 1) / 2
    steepness = rate(log_s, levels)
    terms: Iterable[Tensor] = (torch.sigmoid((half * mean + (half - v - 0.5)) * steepness) for v in range(levels - 1))
    return sum(terms, torch.zeros_like(steepness * mean))


class _LogMass(torch.autograd.Function):
    """log P with one logarithm: r = a - b, sigmoid(a) = e^min(a, 0) / (1 + e^-|a|)."""

    @staticmethod
    def forward(ctx, x: Tensor, mean: Tensor, log_s: Tensor, levels: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        half = (levels - 1) / 2
        rate = log_s.clamp(FLOOR, CEILING).add_(math.log(half)).neg_().exp_()  # 2 d / s
        a = torch.sub(x + (0.5 - half), mean, alpha=half).mul_(rate)
        b = torch.sub(x - (0.5 + half), mean, alpha=half).mul_(rate)  # equal to the bit to `a` of the level below
        below, above = (x < levels - 1).to(a.dtype), (x > 0).to(a.dtype)  # 1 unless x is the highest, the lowest level
        inside = torch.expm1(-rate).neg_()  # 1 - e^-r, precise also for small r
        ctx.save_for_backward(a, b, rate, inside, below, above, log_s)
        ctx.half = half
        p = torch.where((below * above).bool(), inside, 1)
        low = b.abs().neg_().exp_().mul_(above)
        high = a.abs().neg_().exp_().mul_(below).add_(1)
        p.div_(high.addcmul_(high, low)).log_()
        p.addcmul_(a.clamp(max=0), below)
        return p.addcmul_(b.clamp(min=0), above, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        a, b, rate, inside, below, above, log_s = ctx.saved_tensors
        high = torch.sigmoid(-a).mul_(below)
        low = torch.sigmoid(b).mul_(above)
        # d log(1 - e^-r) / d log r = r e^-r / (1 - e^-r)
        by_rate = (rate / inside).sub_(rate).mul_(below * above).addcmul_(high, a).addcmul_(low, b, value=-1)
        by_mean = (high - low).mul_(rate).mul_(g).mul_(-ctx.half)
        by_log_s = by_rate.mul_(g).neg_().masked_fill_((log_s < FLOOR) | (log_s > CEILING), 0)
        return None, by_mean, by_log_s, None
