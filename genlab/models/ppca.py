"""Probabilistic PCA: a latent Gaussian model in closed form (Tipping & Bishop 1999, J. R. Stat. Soc. B 61).

    z ~ N(0, I),  y | z ~ N(W z + mu, s^2 I),      so      y ~ N(mu, W W' + s^2 I)

of dequantised images y = (x + u) / K, u uniform in [0, 1). With `inference=exact` the density of y is in closed form,
by the L x L matrix M = W'W + s^2 I. With `inference=encoder` it is bounded like that of any latent Gaussian model, by a
linear encoder q(z | y) with one width for each unit. So a bound can be compared with the exact value.

    log P(x) >= E_u log p(x + u),   p(x + u) = p(y) K^-D

`log_prob` is one draw of u (and of z): a log-weight whose exponential has the mean P(x), the mass of a unit cell. Mass
outside the cells of the K levels is lost, so the P(x) of all images sum to less than 1. The maximum of the exact
likelihood spans the principal components, and s^2 is the mean of the variances left out. At this maximum the best
encoder's bound is tight if W'W is diagonal. Gradient ascent on the ELBO finds such a W (Lucas et al. 2019,
arXiv:1911.02469).

At a temperature T both covariances, of z and of y given z, are multiplied by T. So y follows p(y)^(1/T).

B images, D = C H W values, L latent units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, ImageSpec, RequestError
from genlab.models.base import GenerativeModel, to_cells
from genlab.models.conditioning import check_context
from genlab.models.noise import normal, uniform
from genlab.system.device import cholesky, inverse, moved, solve

CONFIGURABLE = {"model": ("PPCA",)}

INFERENCES = ("exact", "encoder")
LOG_2PI = math.log(2 * math.pi)


class PPCA(GenerativeModel):
    """`latent_dim`: L. `inference`: exact | encoder: training and `log_prob` use the density, or its bound."""

    exact = False
    completion = "approximate: known values are placed uniformly in their cells, whatever the density there"

    def __init__(self, spec: ImageSpec, *, latent_dim: int, inference: str = "exact") -> None:
        super().__init__(spec)
        if inference not in INFERENCES:
            raise RequestError(f"model.inference={inference} is not known: choose {' or '.join(INFERENCES)}")
        if not 1 <= latent_dim < spec.dims:
            raise RequestError(f"latent_dim={latent_dim}: expected at least 1 and fewer than the {spec.dims} values")
        self.latent_dim, self.inference = latent_dim, inference
        self.loadings = nn.Parameter(0.1 * torch.randn(spec.dims, latent_dim) / math.sqrt(latent_dim))
        self.mean = nn.Parameter(torch.full((spec.dims,), 0.5))
        self.log_sigma = nn.Parameter(torch.tensor(math.log(0.3)))
        if inference == "encoder":
            self.encoder = nn.Linear(spec.dims, latent_dim)
            self.log_var = nn.Parameter(torch.zeros(latent_dim))

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Nats (B,) each: "loss", which is -log p(x + u) of one u, or its negative ELBO with the KL in closed form;
        "rate", the KL of the posterior from the prior; "distortion", the rest of the loss.
        """
        check_context(context, self.conditioning, len(x))
        y = self.dequantised(x)
        if self.inference == "exact":
            loss = -self.log_density(y)
            with torch.no_grad():
                m, s2 = self._moments()
                mean = solve(m, self.loadings.to(m.dtype).T @ (y - self.mean).to(m.dtype).T)
                spread = (s2 * inverse(m).trace()) - self.latent_dim - self.latent_dim * s2.log() + m.logdet()
                rate = (mean.square().sum(0) + spread) / 2
            return {"loss": loss, "rate": rate, "distortion": loss.detach() - rate}
        mean, log_var = self._encoded(y)
        rate = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        distortion = -self._conditional(y, z)
        return {"loss": rate + distortion, "rate": rate.detach(), "distortion": distortion.detach()}

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> one draw of log w, nats (B,)."""
        check_context(context, self.conditioning, len(x))
        y = self.dequantised(x)
        return self.log_density(y) if self.inference == "exact" else self.log_weight(y)

    def dequantised(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> y (B, D) in [0, 1)."""
        self.spec.check(x)
        u = torch.rand(x.shape, dtype=self.dtype, device=x.device)
        return ((x.to(self.dtype) + u) / self.spec.levels).flatten(1)

    def log_density(self, y: Tensor) -> Tensor:
        """log p of y (B, D), as a density of x + u, nats (B,): exact."""
        m, s2 = self._moments()
        centred = (y - self.mean).to(m.dtype)
        root = cholesky(m)
        across = torch.linalg.solve_triangular(root, self.loadings.to(m.dtype).T @ centred.T, upper=False)
        distance = (centred.square().sum(1) - across.square().sum(0)) / s2
        log_det = 2 * root.diagonal().log().sum() + (self.spec.dims - self.latent_dim) * s2.log()
        return -(distance + log_det + self.spec.dims * LOG_2PI) / 2 - self._log_cells()

    def log_weight(self, y: Tensor) -> Tensor:
        """One draw of log p(y | z) p(z) / q(z | y) of y (B, D), nats (B,); its mean over z is at most `log_density`."""
        mean, log_var = self._encoded(y)
        noise = torch.randn_like(mean)
        z = mean + (log_var / 2).exp() * noise
        return self._conditional(y, z) + (noise.square() - z.square() + log_var).sum(1) / 2

    def posterior(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Integers (B, C, H, W) -> mean and log-variance (B, L) of q(z | y), or of each unit under the exact p(z | y),
        for y in the middle of the cell of x.
        """
        check_context(context, self.conditioning, len(x))
        y = ((x.to(self.dtype) + 0.5) / self.spec.levels).flatten(1)
        if self.inference == "encoder":
            return self._encoded(y)
        m, s2 = self._moments()
        mean = solve(m, self.loadings.to(m.dtype).T @ (y - self.mean).to(m.dtype).T).T
        return mean.to(y.dtype), (s2 * inverse(m).diagonal()).log().expand_as(mean).to(y.dtype)

    def kl_per_unit(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> KL of every unit of `posterior` from N(0, 1), nats (B, L) in double precision."""
        mean, log_var = (part.double() for part in self.posterior(x, context))
        return (mean.square() + log_var.exp() - 1 - log_var) / 2

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The "code": the mean of the posterior (B, L)."""
        return {"code": self.posterior(x, context)[0]}

    # ---- drawing

    def _sample(self, n: int, draw: Draw, condition: Tensor | None) -> Tensor:
        """Draw z, then y given z, and round y down to its level."""
        z, noise = (self._normal(draw, n, size) for size in (self.latent_dim, self.spec.dims))
        y = self.mean + math.sqrt(draw.temperature) * (z @ self.loadings.T + self.log_sigma.exp() * noise)
        return to_cells(y, self.spec)

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """Draw y of the known values uniformly in their cells, then z given these, then the other values of y."""
        heat = math.sqrt(draw.temperature)
        where = moved(known, self.device)[:, None].expand_as(x).flatten(1)
        u = uniform(*where.shape, device=self.device, generator=draw.generator).to(self.dtype)
        y = (x.flatten(1).to(self.dtype) + u) / self.spec.levels
        w, s2 = self.loadings.double(), (2 * self.log_sigma.double()).exp()
        counted = where.double()
        m = torch.einsum("dl,bd,dk->blk", w, counted, w) / s2 + torch.eye(
            self.latent_dim, dtype=w.dtype, device=w.device
        )
        pull = ((counted * (y - self.mean)) @ w / s2)[..., None]
        root = cholesky(m)
        noise = self._normal(draw, len(x), self.latent_dim).double()[..., None]
        spread = torch.linalg.solve_triangular(root.mT, noise, upper=True)
        z = (torch.cholesky_solve(pull, root) + heat * spread)[..., 0].to(self.dtype)
        noise_of_y = self._normal(draw, *where.shape)
        drawn = to_cells(self.mean + z @ self.loadings.T + heat * self.log_sigma.exp() * noise_of_y, self.spec)
        return Completion(torch.where(where.view_as(x), x, drawn), None)

    # ---- parts

    def _moments(self) -> tuple[Tensor, Tensor]:
        """M = W'W + s^2 I (L, L) and s^2, in double precision."""
        w, s2 = self.loadings.double(), (2 * self.log_sigma.double()).exp()
        return w.T @ w + s2 * torch.eye(self.latent_dim, dtype=w.dtype, device=w.device), s2

    def _encoded(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y (B, D) -> mean and log-variance of q(z | y), (B, L) each."""
        mean = self.encoder(y - 0.5).to(self.dtype)
        return mean, self.log_var.expand_as(mean)

    def _conditional(self, y: Tensor, z: Tensor) -> Tensor:
        """log p(y | z), nats (B,)."""
        error = (y - self.mean - z @ self.loadings.T).square().sum(1) * (-2 * self.log_sigma).exp()
        return -(error + self.spec.dims * (2 * self.log_sigma + LOG_2PI)) / 2 - self._log_cells()

    def _log_cells(self) -> float:
        """log K^D: a density of y is K^D times that of x + u."""
        return self.spec.dims * math.log(self.spec.levels)

    def _normal(self, draw: Draw, *shape: int) -> Tensor:
        """Numbers of N(0, 1)."""
        return normal(*shape, device=self.device, generator=draw.generator).to(self.dtype)
