"""Mixture density networks: p(x | y) = sum_z p(x | z, y) p(z | y), all of it by a net of y (Bishop 1994, NCRG/94/004).

A net that learns by squared error predicts the mean of x given y, which need not be near any x: where one y has several
answers, the mean is none of them. Here the net gives the weights, means and deviations of M Gaussians instead, which
can be any density as M grows; M = 1 is least squares with a deviation of its own for every y and value.

The values of x are independent given z and y, and theirs are masses of the cells of integers, as in `mixture.py` with
`pixels=discretised`: `log_prob` is exact. So are completions, which weigh the components by the known pixels.
`temperature` multiplies the variance of every component.

B images x, each with a second image y; M components; D = C H W values of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.core import Completion, ImageSpec, RequestError
from genlab.models.conditioning import suited
from genlab.models.gaussians import deviation, log_mass, noise, pick
from genlab.system.device import moved, true_float32


class MixtureDensity(nn.Module):
    """`net(spec=, outputs=)`, which sees second images in [0, 1], arrives unfinished. `components`: M. `floor`: the
    smallest standard deviation, in units of the range.
    """

    exact = True
    completion = "exact"
    conditioning = "image"

    def __init__(
        self, spec: ImageSpec, *, net: Callable[..., nn.Module], components: int = 10, floor: float = 0.001
    ) -> None:
        super().__init__()
        if spec.context is None:
            raise RequestError("model=mixture_density needs a second image to look at: add data/context=half_mean")
        if components < 1 or not 0 < floor < math.inf:
            raise RequestError(f"a mixture needs components >= 1 and a floor above 0, got {components} and {floor}")
        self.spec, self.given, self.components, self.floor = spec, spec.context, components, floor
        self.net = net(spec=spec.context, outputs=components * (1 + 2 * spec.dims))
        # What the net starts from: components of equal weight, side by side over the range.
        self.logits = nn.Parameter(torch.zeros(components))
        middle = (torch.arange(components) + 0.5) / components
        self.means = nn.Parameter(middle[:, None].repeat(1, spec.dims))
        self.log_std = nn.Parameter(torch.full((components, spec.dims), math.log(0.3)))

    def mixture(self, context: Tensor | None, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Second images (B, C', H', W') -> log p(z | y) (B, M), means and deviations (B, M, D), in float64 and in units
        of the range, where level x is [x, x + 1) / K.
        """
        context = suited(context, self.conditioning, batch)
        assert context is not None  # or it would not have suited
        self.given.check(context)
        out = self.net(context.to(self.logits) / (self.given.levels - 1)).double()
        weights, means, log_std = out.split([self.components, *2 * [self.components * self.spec.dims]], 1)
        shape = batch, self.components, self.spec.dims
        s = deviation(self.log_std + log_std.view(shape), self.floor)
        return (self.logits + weights).log_softmax(1), self.means + means.view(shape), s

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W) and their second images -> nats (B,), exact."""
        return self._log_joint(x, context).logsumexp(1)

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative log-likelihood in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The "responsibilities" p(z | x, y) (B, M)."""
        return {"responsibilities": self._log_joint(x, context).softmax(1).to(self.logits.dtype)}

    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n images (n, C, H, W): a completion of nothing."""
        x = torch.zeros(n, *self.spec.shape, dtype=torch.long, device=self.logits.device)
        known = torch.zeros(n, *self.spec.shape[1:], dtype=torch.bool, device=x.device)
        return self.complete(x, known, context=context, temperature=temperature, generator=generator).images

    @torch.no_grad()
    @true_float32()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        context: Tensor | None = None,
        particles: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Completion:
        """Keep x (B, C, H, W) where known (B, H, W) is True, draw the rest given it."""
        self.spec.check(x)
        device = self.logits.device
        given, context = moved(x, device).long().flatten(1), None if context is None else moved(context, device)
        fixed = moved(known, device)[:, None].expand_as(x).flatten(1)
        weights, means, s = self.mixture(context, len(x))
        s = math.sqrt(temperature) * s
        choice = noise(torch.rand, (len(x),), generator, device)
        normal = noise(torch.randn, (len(x), self.spec.dims), generator, device)
        masses = log_mass(given[:, None], means, s, self.spec.levels)
        weights = weights + torch.where(fixed[:, None], masses, 0).sum(2)
        which = pick(weights.softmax(1), choice)
        rows = torch.arange(len(x), device=device)
        drawn = ((means[rows, which] + s[rows, which] * normal) * self.spec.levels).floor()
        drawn = torch.where(fixed, given, drawn.clamp(0, self.spec.levels - 1).long())
        return Completion(drawn.view(x.shape), torch.ones(len(x), dtype=torch.double, device=device))

    def _log_joint(self, x: Tensor, context: Tensor | None) -> Tensor:
        """log p(x, z | y), (B, M)."""
        self.spec.check(x)
        weights, means, s = self.mixture(context, len(x))
        return weights + log_mass(x.flatten(1)[:, None], means, s, self.spec.levels).sum(2)
