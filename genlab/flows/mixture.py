"""Mixture-of-logistics coupling: each value goes through the distribution function of a mixture, chosen by a net.

    z = logit(F(y)) exp(s) + t,    F(y) = sum_k weight_k sigmoid((y - mean_k) exp(-scale_k))

Ho et al. 2019 (Flow++, arXiv:1902.00275, eq. 10-13). An affine map shifts and scales a density. This map can also merge
several modes into one, so a single coupling can model values that are either black or white. The inverse is computed
by bisection between the inverses of the single logistics, which enclose it. Ours uses Newton's steps where they stay
inside the bracket, starts with means that are spread out, and passes gradients through the inverse by the implicit
function theorem.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.flows.coupling import Coupling, bounded
from genlab.flows.layer import Shape

CONFIGURABLE = {"coupling": ("MixtureCoupling",)}

NARROWEST = 8.0  # bound of the log-scales: scales are between e^-8 and e^8
BISECTIONS = 150  # largest number of steps, of which every third is a bisection; a dozen is usual
CHECK_EVERY = 16  # steps between checks on a GPU that all values have converged: the host waits for each check
SPREAD = 2.0  # at the start the means are between -2 and 2


class MixtureCoupling(Coupling):
    """A coupling by mixtures of logistics. `components`: logistics in the mixture of a value."""

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
        log_weight, mean, log_scale, stretch, shift = self.unpacked(parameters)
        z, log_slope = logit_cdf(y, log_weight, mean, log_scale)
        return z * stretch.exp() + shift, log_slope + stretch

    def undo(self, z: Tensor, parameters: Tensor) -> Tensor:
        """See `Coupling`."""
        log_weight, mean, log_scale, stretch, shift = self.unpacked(parameters)
        z = (z - shift) * (-stretch).exp()
        with torch.no_grad():
            y = _solved(z, log_weight, mean, log_scale)
        if not torch.is_grad_enabled():
            return y
        value, log_slope = logit_cdf(y, log_weight, mean, log_scale)
        step = (z - value) * (-log_slope.detach()).exp()  # the derivatives of one Newton step are those of the inverse
        return y + step - step.detach()

    def unpacked(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales of the mixture, (B, K, c, H, W) each; s and t, (B, c, H, W) each."""
        k = self.components
        logits, mean, log_scale, affine = parameters.split([k, k, k, 2], 1)
        mean = mean + self.means.to(mean.dtype)
        return logits.log_softmax(1), mean, bounded(log_scale, NARROWEST), bounded(affine[:, 0]), affine[:, 1]


def _solved(z: Tensor, *mixture: Tensor) -> Tensor:
    """Solve logit_cdf(y) = z for y, up to the rounding of y or z. z (B, …).

    `mixture`: log-weights, means and log-scales, (B, K, …) each.
    """
    shape, tiny = z.shape, 4 * torch.finfo(z.dtype).eps
    z, parts = z.reshape(1, -1), [part.transpose(0, 1).reshape(1, part.shape[1], -1) for part in mixture]
    ends = parts[1] + z[:, None] * parts[2].exp()
    low, high = ends.amin(1), ends.amax(1)
    y = (low + high) / 2
    # On a CPU, values that have converged are removed from the computation. On a GPU they stay and are kept constant,
    # because the host would have to wait to learn which ones they are.
    removing = y.device.type == "cpu"
    solved, index = torch.empty_like(y), torch.arange(y.numel(), device=y.device)
    for i in range(BISECTIONS):
        value, log_slope = logit_cdf(y, *parts)
        step = (z - value) * (-log_slope).exp()
        moving = (step.abs() > tiny * (1 + y.abs())) & ((z - value).abs() > tiny * (1 + z.abs()))
        if removing:
            solved[:, index] = y
        else:
            solved = y
        if (removing or i % CHECK_EVERY == CHECK_EVERY - 1) and not moving.any():
            break
        low, high = torch.where(value < z, y, low), torch.where(value < z, high, y)
        newton = y + step
        inside = (newton > low) & (newton < high) & (i % 3 < 2)  # every third step is a bisection
        improved = torch.where(inside, newton, (low + high) / 2)
        if not removing:
            y = torch.where(moving, improved, y)
            continue
        y, moving = improved, moving[0]
        index, y, z, low, high = index[moving], *(values[:, moving] for values in (y, z, low, high))
        parts = [part[..., moving] for part in parts]
    return solved.view(shape)


def logit_cdf(y: Tensor, log_weight: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, …) -> logit(F(y)), F the mixture's distribution function, and the logarithm of its slope, (B, …) each.

    The parameters of the mixture are (B, K, …).
    """
    distance = (y[:, None] - mean) * (-log_scale).exp()
    left = F.logsigmoid(distance)
    right = left - distance
    below, above = (log_weight + left).logsumexp(1), (log_weight + right).logsumexp(1)
    density = (log_weight + left + right - log_scale).logsumexp(1)
    return below - above, density - below - above
