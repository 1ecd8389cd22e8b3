"""Mixture density networks: p(x | y) = sum_z p(x | z, y) p(z | y), from a net of y (Bishop 1994, NCRG/94/004).

A net trained by squared error predicts the mean of x given y, which may be far from every x: if several values of x are
likely given y, the mean may be an unlikely one. Here the net gives the weights, means and deviations of M Gaussians
instead, which can approximate any density as M grows. M = 1 is least squares with a learnt deviation.

The values of x are independent given z and y, and their probabilities are masses of the cells of integers, as in
`mixture.py` with `pixels=discretised`. So `log_prob` is exact. Completions are too: the components are weighted by the
known pixels. The temperature is that of `mixture.py`: first z is tempered, then x given z.

B images x, each with a second image y; M components; D = C H W values of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, ImageSpec, RequestError
from genlab.models.base import GenerativeModel, to_cells
from genlab.models.gaussians import deviation, log_mass, pick
from genlab.models.noise import normal, uniform
from genlab.system.device import moved

CONFIGURABLE = {"model": ("MixtureDensity",)}


class MixtureDensity(GenerativeModel):
    """`net(spec=, outputs=)` is a constructor; the net gets second images in [0, 1]. `components`: M.

    `floor`: the smallest standard deviation, in units of the range.
    """

    exact = True
    completion = "exact"
    conditioning = "image"

    def __init__(
        self, spec: ImageSpec, *, net: Callable[..., nn.Module], components: int = 10, floor: float = 0.001
    ) -> None:
        super().__init__(spec)
        if spec.context is None:
            raise RequestError("model=mixture_density needs a second image as its context: add data/context=half_mean")
        if components < 1 or not 0 < floor < math.inf:
            raise RequestError(f"a mixture needs components >= 1 and a floor above 0, got {components} and {floor}")
        self.second, self.components, self.floor = spec.context, components, floor
        self.net = net(spec=spec.context, outputs=components * (1 + 2 * spec.dims))
        # Added to the output of the net, so that training starts with equal weights and means spread over the range.
        self.logits = nn.Parameter(torch.zeros(components))
        middle = (torch.arange(components) + 0.5) / components
        self.means = nn.Parameter(middle[:, None].repeat(1, spec.dims))
        self.log_std = nn.Parameter(torch.full((components, spec.dims), math.log(0.3)))

    def mixture(self, context: Tensor | None, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Second images (B, C', H', W') -> log p(z | y) (B, M), means and deviations (B, M, D), float64.

        Means and deviations are in units of the range, in which level x has the cell [x, x + 1) / K.
        """
        second = self._condition(context, batch)
        assert second is not None  # `_condition` raises an error for a missing context
        return self._mixture(second)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W) and their second images -> nats (B,), exact."""
        return self._log_joint(x, context).logsumexp(1)

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative log-likelihood in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The "responsibilities" p(z | x, y) (B, M)."""
        return {"responsibilities": self._log_joint(x, context).softmax(1).to(self.dtype)}

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """The component given the known values, then the other values given the component."""
        assert condition is not None  # the second images
        values = x.flatten(1)
        fixed = moved(known, self.device)[:, None].expand_as(x).flatten(1)
        weights, means, s = self._mixture(condition)
        if draw.temperature != 1:
            weights, s = (weights / draw.temperature).log_softmax(1), math.sqrt(draw.temperature) * s
        source: dict[str, Any] = {"device": self.device, "generator": draw.generator, "dtype": torch.double}
        choice = uniform(len(x), **source)
        noise = normal(len(x), self.spec.dims, **source)
        masses = log_mass(values[:, None], means, s, self.spec.levels)
        weights = weights + torch.where(fixed[:, None], masses, 0).sum(2)
        component = pick(weights.softmax(1), choice)
        rows = torch.arange(len(x), device=self.device)
        drawn = to_cells(means[rows, component] + s[rows, component] * noise, self.spec).flatten(1)
        return Completion(torch.where(fixed, values, drawn).view(x.shape), None)

    def _mixture(self, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `mixture`, of second images that have been checked against the batch."""
        self.second.check(second)
        out = self.net(second.to(self.dtype) / (self.second.levels - 1)).double()
        weights, means, log_std = out.split([self.components, *2 * [self.components * self.spec.dims]], 1)
        shape = len(second), self.components, self.spec.dims
        s = deviation(self.log_std + log_std.view(shape), self.floor)
        return (self.logits + weights).log_softmax(1), self.means + means.view(shape), s

    def _log_joint(self, x: Tensor, context: Tensor | None) -> Tensor:
        """log p(x, z | y), (B, M)."""
        self.spec.check(x)
        weights, means, s = self.mixture(context, len(x))
        return weights + log_mass(x.flatten(1)[:, None], means, s, self.spec.levels).sum(2)
