"""Mixtures of Gaussians: p(x) = sum_z p(x | z) p(z), z one of M components (McLachlan & Peel 2000).

What the Gaussians are of (`pixels`):

    discretised   cells: p(x | z) is the mass N(mean, diag s^2) has in the cells of the integers, the outermost of which
                  take the tails. `log_prob` is exact and the probabilities of all images sum to 1. Diagonal covariances
                  alone: the mass that a full one has in a cell of 784 sides is an integral nobody can do.
    dequantised   x + u, u uniform in [0, 1): `log_prob` is the density of x + u in units where a level is 1, for one
                  draw of u. Its mean over u is the mass of a unit cell, so that it is a bound like any other, and the
                  only one there is for full and low-rank covariances. What lies outside the cells is lost; samples put
                  it at black and white.

How they are trained (`fit`): by `em` (Dempster et al. 1977), each step on all training images, with one draw of u for
all steps: then no step lowers the log-likelihood of the training images. EM takes part in `genlab train` as
`core.Fitted`. Or by `gradient`, as any model, on batches. Both start from k-means: of components that differ at random
one soon explains all images, and the gradients of the others vanish.

Completion weighs the components by the known pixels and draws the rest from the conditional of one of them: exact
where pixels are discretised. Of dequantised ones the density depends on where in its cell a known pixel lies; so
`particles` draws of u are weighted by the density they give to what is known, and one is taken: right as they grow.
`temperature` multiplies the covariance of every component, and leaves p(z) alone: it is not p(x)^(1/temperature).

B images, M components, D = C H W values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genlab.core import Completion, ImageSpec, RequestError
from genlab.models.conditioning import suited
from genlab.models.densities import clusters
from genlab.models.gaussians import Cells, Diagonal, Full, LowRank, noise, pick
from genlab.system.device import moved, true_float32

COVARIANCES, PIXELS, FITS = ("diagonal", "full", "low_rank"), ("discretised", "dequantised"), ("em", "gradient")
LEAST = 1e-12  # responsibilities below this change no sum in float64, and are left out of it


class GaussianMixture(nn.Module):
    """`components`: M. `covariance`: diagonal | full | low_rank, of `rank` factors. `pixels`, `fit`: see above.

    `floor`: the smallest standard deviation, in units of the range; of a full covariance in any direction.
    """

    conditioning = "none"

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
        super().__init__()
        given = {"covariance": (covariance, COVARIANCES), "pixels": (pixels, PIXELS), "fit": (fit, FITS)}
        for key, (value, choices) in given.items():
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
        self.spec, self.exact = spec, pixels == "discretised"
        self.fitted = fit == "em"
        self.logits = nn.Parameter(torch.zeros(components))
        sizes = components, spec.dims, spec.levels, floor
        if covariance == "low_rank":
            self.gaussians = LowRank(*sizes, rank)
        else:
            of = Full if covariance == "full" else Cells if self.exact else Diagonal
            self.gaussians = of(*sizes)

    @property
    def completion(self) -> str:
        """Exact, or by weighted draws of what dequantises the known pixels."""
        return "exact" if self.exact else "weighted"

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W) -> nats (B,): exact, or for one draw of u."""
        suited(context, self.conditioning, len(x))
        self.spec.check(x)
        return self._log_joint(self._values(x)).logsumexp(1) - self._log_cell

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative log-likelihood in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    def check_images(self, n: int) -> None:
        """RequestError for fewer training images than components."""
        if n < len(self.logits):
            raise RequestError(
                f"model.components={len(self.logits)}: there are only {n} training images to start from; give "
                f"model.components={n} or fewer"
            )

    @torch.no_grad()
    def prime(self, x: Tensor, *, seed: int) -> None:
        """Start from the M clusters of k-means, of all training images (N, C, H, W)."""
        self.spec.check(x)
        self.check_images(len(x))
        labels = clusters(x.flatten(1).float(), len(self.logits), seed=seed)
        values = self._values(x, torch.Generator().manual_seed(seed))
        self._maximise(values, nn.functional.one_hot(labels, len(self.logits)).double())

    @torch.no_grad()
    def fit_step(self, x: Tensor, *, seed: int) -> dict[str, Tensor]:
        """One step of EM on all training images (N, C, H, W). "loss" (N,): nats before it."""
        self.spec.check(x)
        # The same u at every step: EM ascends the likelihood of one data set.
        values = self._values(x, torch.Generator().manual_seed(seed))
        log_joint = torch.cat([self._log_joint(part) for part in values.split(self.gaussians.at_once)])
        log_p = log_joint.logsumexp(1)
        self._maximise(values, (log_joint - log_p[:, None]).exp_())
        return {"loss": self._log_cell - log_p}

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The "responsibilities" p(z | x) (B, M); of dequantised pixels in the middle of their cells."""
        suited(context, self.conditioning, len(x))
        self.spec.check(x)
        values = x.flatten(1) if self.exact else (x.flatten(1).double() + 0.5) / self.spec.levels
        return {"responsibilities": self._log_joint(values).softmax(1).to(self.logits.dtype)}

    def filters(self) -> Tensor:
        """Means as images (M, C, H, W), the most probable component first; mid-grey is zero."""
        order = self.logits.argsort(descending=True, stable=True)
        return self.gaussians.means[order].view(-1, *self.spec.shape) - 0.5

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
        suited(context, self.conditioning, len(x))
        self.spec.check(x)
        device, draws = self.logits.device, 1 if self.exact else particles
        given = moved(x, device).long().flatten(1)
        fixed = known.cpu()[:, None].expand(x.shape).flatten(1)
        shape = len(x), draws, self.spec.dims
        u = given.new_zeros(shape) if self.exact else noise(torch.rand, shape, generator, device)
        normal = noise(torch.randn, (len(x), self.gaussians.noise_size), generator, device)
        choice = noise(torch.rand, (len(x), 2), generator, device)  # of a particle, of a component
        out, effective = given.clone(), torch.ones(len(x), dtype=torch.double, device=device)
        masks, alike = fixed.unique(dim=0, return_inverse=True)
        for i, mask in enumerate(masks):
            found = (alike == i).nonzero()[:, 0], mask.nonzero()[:, 0], mask
            own, at, mask = (moved(part, device) for part in found)
            v = given[own][:, None, at] + u[own][:, :, at]  # (n, P, |at|)
            v = v if self.exact else v / self.spec.levels
            log_joint = self._log_joint(v.flatten(0, 1), at, temperature).view(len(own), draws, -1)
            weights = log_joint.logsumexp(2).softmax(1)
            effective[own] = weights.square().sum(1).reciprocal()
            particle = pick(weights, choice[own, 0])
            rows = torch.arange(len(own), device=device)
            which = pick(log_joint[rows, particle].softmax(1), choice[own, 1])
            drawn = self.gaussians.complete(v[rows, particle], at, which, normal[own], temperature)
            drawn = (drawn * self.spec.levels).floor().clamp(0, self.spec.levels - 1).long()
            out[own] = torch.where(mask, given[own], drawn)
        return Completion(out.view(x.shape), effective)

    def _log_joint(self, values: Tensor, at: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """log p(values at the dimensions `at`, z), (B, |at|) -> (B, M), float64."""
        at = torch.arange(self.spec.dims, device=values.device) if at is None else at
        found = self.logits.double().log_softmax(0).expand(len(values), -1)
        return found + self.gaussians.log_density(values, at, temperature) if len(at) else found

    def _maximise(self, values: Tensor, responsibilities: Tensor) -> None:
        """The M step: values (N, D), responsibilities (N, M)."""
        totals = responsibilities.sum(0)
        # Of every component its images, in one look at the device; one without images stays as it is.
        some = responsibilities.T > LEAST
        counts, sums = torch.stack([some.sum(1).double(), totals]).tolist()
        parts = some.nonzero()[:, 1].split([int(count) for count in counts])
        for m, (own, total) in enumerate(zip(parts, sums, strict=True)):
            if total > LEAST:
                self.gaussians.update(m, values[own], responsibilities[own, m])
        self.logits.copy_(totals.clamp(min=LEAST).log())

    def _values(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images -> what the Gaussians are of, (B, D): the integers, or those plus noise in units of the range."""
        if self.exact:
            return x.flatten(1)
        # Fresh noise in every call without a generator: averaging exp(log_prob) over calls tightens the bound.
        u = (
            torch.rand(x.shape, device=x.device)
            if generator is None
            else noise(torch.rand, x.shape, generator, x.device)
        )
        return (x.double() + u).flatten(1) / self.spec.levels

    @property
    def _log_cell(self) -> float:
        """From densities in units of the range to densities in units of a level."""
        return 0.0 if self.exact else self.spec.dims * math.log(self.spec.levels)
