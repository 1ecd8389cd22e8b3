"""Mixtures of Gaussians: p(x) = sum_z p(x | z) p(z), z one of M components (McLachlan & Peel 2000).

The Gaussians describe one of two kinds of values (`pixels`):

    discretised   cells of integers: p(x | z) is the mass of N(mean, diag s^2) in the cells of x, with the tails in the
                  outermost cells. `log_prob` is exact, and the probabilities of all images sum to 1. Only for diagonal
                  covariances: the mass of a full one in a cell of 784 sides is an integral that cannot be computed.
    dequantised   x + u, u uniform in [0, 1): `log_prob` is the density of x + u in units of a level, for one draw of u.
                  Its mean over u is the mass of a unit cell, so it is a bound. Mass outside the cells of the K
                  levels is lost in the likelihood; samples there become black or white.

How they are trained (`fit`): `em` (Dempster et al. 1977) takes steps on all training images, as a `core.Fitted`. All
steps use one draw of u, so that no step lowers the log-likelihood of the training images. `gradient` trains on batches
as any other model. Both start from k-means. If the components started at random, one would soon explain all images,
and the gradients of the others would vanish.

Completion weights the components by the known pixels, draws one, and draws the unknown pixels from its conditional. It
is exact for discretised pixels. The density of dequantised pixels depends on the positions of the known values in their
cells. So `particles` draws of u are weighted by the density of the known values, and one is drawn. The result tends to
the conditional as the number of particles grows.

At a temperature T, first z is tempered, then x given z: the component is drawn from p(z)^(1/T), normalised, and the
Gaussian is N(.; mean, covariance)^(1/T), whose covariance is T times as large. This is ancestral tempering. The power
p(x)^(1/T) of the whole mixture is another distribution, and not a mixture.

B images, M components, D = C H W values, P particles.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, ImageSpec, RequestError
from genlab.models.base import GenerativeModel, to_cells
from genlab.models.conditioning import check_context
from genlab.models.densities import clusters
from genlab.models.gaussians import Cells, Diagonal, Full, LowRank, pick
from genlab.models.noise import normal, uniform
from genlab.system.device import moved

CONFIGURABLE = {"model": ("GaussianMixture",)}

COVARIANCES, PIXELS, FITS = ("diagonal", "full", "low_rank"), ("discretised", "dequantised"), ("em", "gradient")
LEAST = 1e-12  # smaller responsibilities change no sum in float64 and are left out


class GaussianMixture(GenerativeModel):
    """`components`: M. `covariance`: diagonal | full | low_rank, of `rank` factors. `pixels`, `fit`: see above.

    `floor`: the smallest standard deviation, in units of the range; of a full covariance in any direction.
    """

    gaussians: Diagonal | Full | LowRank

    def __init__(
        self,
        spec: ImageSpec,
        *,
        components: int = 100,
        covariance: str = "diagonal",
        rank: int = 10,
        pixels: str = "discretised",
        fit: str = "em",
        floor: float = 0.01,
    ) -> None:
        super().__init__(spec)
        words = {"covariance": (covariance, COVARIANCES), "pixels": (pixels, PIXELS), "fit": (fit, FITS)}
        for key, (value, choices) in words.items():
            if value not in choices:
                raise RequestError(f"model.{key}={value} is not known: choose {', '.join(choices)}")
        if pixels == "discretised" and covariance != "diagonal":
            raise RequestError(
                f"model.covariance={covariance} has no exact mass in the cells of pixels: add model.pixels=dequantised"
            )
        if components < 1 or not 0 < floor < math.inf:
            raise RequestError(f"a mixture needs components >= 1 and a floor above 0, got {components} and {floor}")
        if covariance == "low_rank" and not 1 <= rank < spec.dims:
            raise RequestError(f"model.rank={rank}: expected at least 1 and fewer than the {spec.dims} values")
        self.exact = pixels == "discretised"
        self.fitted = fit == "em"
        self.logits = nn.Parameter(torch.zeros(components))
        sizes = components, spec.dims, spec.levels, floor
        if covariance == "low_rank":
            self.gaussians = LowRank(*sizes, rank)
        else:
            kind = Full if covariance == "full" else Cells if self.exact else Diagonal
            self.gaussians = kind(*sizes)

    @property
    def completion(self) -> str:
        """Discretised pixels: "exact". Dequantised pixels: "weighted", by draws of u for the known pixels."""
        return "exact" if self.exact else "weighted"

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W) -> nats (B,): exact, or one draw of u."""
        check_context(context, self.conditioning, len(x))
        self.spec.check(x)
        return self._log_joint(self._values(x)).logsumexp(1) - self._log_cells

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative log-likelihood in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The "responsibilities" p(z | x) (B, M); dequantised pixels are at the middle of their cells."""
        check_context(context, self.conditioning, len(x))
        self.spec.check(x)
        values = x.flatten(1) if self.exact else (x.flatten(1).double() + 0.5) / self.spec.levels
        return {"responsibilities": self._log_joint(values).softmax(1).to(self.dtype)}

    def filters(self) -> Tensor:
        """Means as images (M, C, H, W), the most probable component first; mid-grey is zero."""
        order = self.logits.argsort(descending=True, stable=True)
        return self.gaussians.means[order].view(-1, *self.spec.shape) - 0.5

    # ---- fitting

    def check_images(self, n: int) -> None:
        """Raise RequestError for fewer training images than components."""
        if n < len(self.logits):
            raise RequestError(
                f"model.components={len(self.logits)}: there are only {n} training images to start from; give "
                f"model.components={n} or fewer"
            )

    @torch.no_grad()
    def prime(self, x: Tensor, *, seed: int) -> None:
        """Start from the M clusters that k-means finds in all training images (N, C, H, W)."""
        self.spec.check(x)
        self.check_images(len(x))
        labels = clusters(x.flatten(1).float(), len(self.logits), seed=seed)
        values = self._values(x, torch.Generator().manual_seed(seed))
        self._maximise(values, nn.functional.one_hot(labels, len(self.logits)).double())

    @torch.no_grad()
    def fit_step(self, x: Tensor, *, seed: int) -> dict[str, Tensor]:
        """One step of EM on all training images (N, C, H, W). "loss" (N,): nats before the step."""
        self.spec.check(x)
        # The same u at every step, so that EM ascends the likelihood of one data set.
        values = self._values(x, torch.Generator().manual_seed(seed))
        log_joint = torch.cat([self._log_joint(part) for part in values.split(self.gaussians.chunk)])
        log_p = log_joint.logsumexp(1)
        self._maximise(values, (log_joint - log_p[:, None]).exp_())
        return {"loss": self._log_cells - log_p}

    def _maximise(self, values: Tensor, responsibilities: Tensor) -> None:
        """The M step: values (N, D), responsibilities (N, M)."""
        totals = responsibilities.sum(0)
        # The images of all components are counted together, so that the host waits for the device only once. A
        # component without images is not changed.
        significant = responsibilities.T > LEAST
        counts, sums = torch.stack([significant.sum(1).double(), totals]).tolist()
        parts = significant.nonzero()[:, 1].split([int(count) for count in counts])
        for m, (members, total) in enumerate(zip(parts, sums, strict=True)):
            if total > LEAST:
                self.gaussians.update(m, values[members], responsibilities[members, m])
        self.logits.copy_(totals.clamp(min=LEAST).log())

    # ---- drawing

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """Images with the same mask are completed together, because they share the marginals of the Gaussians."""
        device, particles = self.device, 1 if self.exact else draw.particles
        values = x.flatten(1)
        fixed = known.cpu()[:, None].expand(x.shape).flatten(1)
        source: dict[str, Any] = {"device": device, "generator": draw.generator, "dtype": torch.double}
        shape = len(x), particles, self.spec.dims
        u = values.new_zeros(shape) if self.exact else uniform(*shape, **source)
        noise = normal(len(x), self.gaussians.noise_size, **source)
        choice = uniform(len(x), 2, **source)  # of a particle, of a component
        out, effective = values.clone(), torch.ones(len(x), dtype=torch.double, device=device)
        masks, which_mask = fixed.unique(dim=0, return_inverse=True)
        for i, mask in enumerate(masks):
            parts = (which_mask == i).nonzero()[:, 0], mask.nonzero()[:, 0], mask
            members, at, mask = (moved(part, device) for part in parts)
            v = values[members][:, None, at] + u[members][:, :, at]  # (n, P, |at|)
            v = v if self.exact else v / self.spec.levels
            log_joint = self._log_joint(v.flatten(0, 1), at, draw.temperature).view(len(members), particles, -1)
            weights = log_joint.logsumexp(2).softmax(1)
            effective[members] = weights.square().sum(1).reciprocal()
            particle = pick(weights, choice[members, 0])
            rows = torch.arange(len(members), device=device)
            component = pick(log_joint[rows, particle].softmax(1), choice[members, 1])
            drawn = self.gaussians.complete(v[rows, particle], at, component, noise[members], draw.temperature)
            out[members] = torch.where(mask, values[members], to_cells(drawn, self.spec).flatten(1))
        return Completion(out.view(x.shape), None if self.exact else effective)

    # ---- parts

    def _log_joint(self, values: Tensor, at: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """log p(values at the dimensions `at`, z), (B, |at|) -> (B, M), float64; z and values given z both tempered."""
        at = torch.arange(self.spec.dims, device=values.device) if at is None else at
        log_p = self.logits.double().log_softmax(0)
        log_p = log_p if temperature == 1 else (log_p / temperature).log_softmax(0)
        log_joint = log_p.expand(len(values), -1)
        return log_joint + self.gaussians.log_density(values, at, temperature) if len(at) else log_joint

    def _values(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images -> the values that the Gaussians describe, (B, D): integers, or x + u in units of the range."""
        if self.exact:
            return x.flatten(1)
        # Without a generator every call draws new noise: averaging exp(log_prob) over calls tightens the bound.
        u = (
            torch.rand(x.shape, device=x.device)
            if generator is None
            else uniform(*x.shape, device=x.device, generator=generator, dtype=torch.double)
        )
        return (x.double() + u).flatten(1) / self.spec.levels

    @property
    def _log_cells(self) -> float:
        """log K^D: a density in units of the range is K^D times that in units of a level."""
        return 0.0 if self.exact else self.spec.dims * math.log(self.spec.levels)
