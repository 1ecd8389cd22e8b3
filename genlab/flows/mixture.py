"""Mixture-of-logistics coupling: each value goes through the distribution function of a mixture that a net chose.

    z = logit(F(y)) exp(s) + t,    F(y) = sum_k weight_k sigmoid((y - mean_k) exp(-scale_k))

Ho et al. 2019, Flow++ (arXiv:1902.00275, eq. 10-13). An affine map moves and stretches a bump; this one can flatten
several into one, so a single coupling models values that are black or white. The inverse is found by bisection between
the inverses of the single logistics, which enclose it. Ours takes Newton's step where it stays inside the bracket,
spreads the means at the start, and passes gradients through the inverse by the implicit function theorem.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.flows.coupling import Coupling, bounded
from genlab.flows.layer import Shape

NARROWEST = 8.0  # scales are e^-8 … e^8
BISECTIONS = 150  # at most, a third of them for sure; where the function is steep a dozen will do
LOOK = 16  # steps after which a GPU is asked whether all values are found: to ask is to wait
SPREAD = 2.0  # means start between -2 and 2


class MixtureCoupling(Coupling):
    """`components`: logistics in the mixture of a value."""

    means: Tensor

    def __init__(
        self, shape: Shape, *, net: Callable[..., nn.Module], components: int = 8, context_width: int = 0
    ) -> None:
        super().__init__(shape, net=net, numbers=3 * components + 2, context_width=context_width)
        self.components = components
        means = torch.linspace(-SPREAD, SPREAD, components)[:, None, None, None]
        self.register_buffer("means", means, persistent=False)

    def transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        log_weight, mean, log_scale, stretch, shift = self._unpacked(parameters)
        z, log_slope = _logit_cdf(y, log_weight, mean, log_scale)
        return z * stretch.exp() + shift, log_slope + stretch

    def undo(self, z: Tensor, parameters: Tensor) -> Tensor:
        """See `Coupling`."""
        log_weight, mean, log_scale, stretch, shift = self._unpacked(parameters)
        z = (z - shift) * (-stretch).exp()
        with torch.no_grad():
            y = _solved(z, log_weight, mean, log_scale)
        if not torch.is_grad_enabled():
            return y
        found, log_slope = _logit_cdf(y, log_weight, mean, log_scale)
        step = (z - found) * (-log_slope.detach()).exp()  # one Newton step has the right derivatives
        return y + step - step.detach()

    def _unpacked(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        k = self.components
        logits, mean, log_scale, rest = parameters.split([k, k, k, 2], 1)
        mean = mean + self.means.to(mean.dtype)
        return logits.log_softmax(1), mean, bounded(log_scale, NARROWEST), bounded(rest[:, 0]), rest[:, 1]


def _solved(z: Tensor, *mixture: Tensor) -> Tensor:
    """y with _logit_cdf(y) = z, z (B, …), to the precision of either; `mixture`: its other arguments, (B, K, …)."""
    shape, tiny = z.shape, 4 * torch.finfo(z.dtype).eps
    z, parts = z.reshape(1, -1), [part.transpose(0, 1).reshape(1, part.shape[1], -1) for part in mixture]
    ends = parts[1] + z[:, None] * parts[2].exp()
    low, high = ends.amin(1), ends.amax(1)
    y = (low + high) / 2
    # On a CPU the values that are found leave; on a GPU they stay and are kept, for it would have to be asked which.
    leaving = y.device.type == "cpu"
    solved, at = torch.empty_like(y), torch.arange(y.numel(), device=y.device)
    for i in range(BISECTIONS):
        found, log_slope = _logit_cdf(y, *parts)
        step = (z - found) * (-log_slope).exp()
        moving = (step.abs() > tiny * (1 + y.abs())) & ((z - found).abs() > tiny * (1 + z.abs()))
        if leaving:
            solved[:, at] = y
        else:
            solved = y
        if (leaving or i % LOOK == LOOK - 1) and not moving.any():
            break
        low, high = torch.where(found < z, y, low), torch.where(found < z, high, y)
        better = y + step
        inside = (better > low) & (better < high) & (i % 3 < 2)  # every third step halves the bracket, come what may
        better = torch.where(inside, better, (low + high) / 2)
        if not leaving:
            y = torch.where(moving, better, y)
            continue
        y, moving = better, moving[0]
        at, y, z, low, high = at[moving], *(value[:, moving] for value in (y, z, low, high))
        parts = [part[..., moving] for part in parts]
    return solved.view(shape)


def _logit_cdf(y: Tensor, log_weight: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, …) -> logit of the mixture's distribution function at y, and the logarithm of its slope, each as y."""
    distance = (y[:, None] - mean) * (-log_scale).exp()
    left = F.logsigmoid(distance)
    right = left - distance
    below, above = (log_weight + left).logsumexp(1), (log_weight + right).logsumexp(1)
    density = (log_weight + left + right - log_scale).logsumexp(1)
    return below - above, density - below - above
