"""Probabilistic PCA: the latent Gaussian model whose integral is known (Tipping & Bishop 1999, J. R. Stat. Soc. B 61).

    z ~ N(0, I),  y | z ~ N(W z + mu, s^2 I),      so      y ~ N(mu, W W' + s^2 I)

of dequantised images y = (x + u) / K, u uniform in [0, 1). With `inference=exact` the density of y is in closed form,
by the L x L matrix M = W'W + s^2 I; with `inference=encoder` it is bounded as that of any latent Gaussian model, by a
linear encoder q(z | y) with a width for every unit. So here a bound can be held against the truth.

    log P(x) >= E_u log p(x + u),   p(x + u) = p(y) K^-D

`log_prob` is one draw of u (and of z): a log-weight whose mean is P(x), the mass of a unit cell. Mass outside the cells
of the K levels is lost, so the P(x) of all images sum to less than 1. The maximum of the exact likelihood spans the
principal components, with s^2 the mean of the variances left out; at it the best encoder's bound is tight once W is
turned so that W'W is diagonal, which gradient ascent on the ELBO does by itself (Lucas et al. 2019, arXiv:1911.02469).

B images, D = C H W values, L latent units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genlab.core import Completion, ImageSpec, RequestError
from genlab.models.conditioning import suited
from genlab.system.device import cholesky, inverse, moved, solve, true_float32

INFERENCES = ("exact", "encoder")
LOG_2PI = math.log(2 * math.pi)


class PPCA(nn.Module):
    """`latent_dim`: L. `inference`: what trains and what `log_prob` draws, exact | encoder."""

    exact = False
    completion = "exact"
    conditioning = "none"

    def __init__(self, spec: ImageSpec, *, latent_dim: int, inference: str = "exact") -> None:
        super().__init__()
        if inference not in INFERENCES:
            raise RequestError(f"model.inference={inference} is not known: choose {' or '.join(INFERENCES)}")
        if not 1 <= latent_dim < spec.dims:
            raise RequestError(f"latent_dim={latent_dim}: expected at least 1 and fewer than the {spec.dims} values")
        self.spec, self.latent_dim, self.inference = spec, latent_dim, inference
        self.loadings = nn.Parameter(0.1 * torch.randn(spec.dims, latent_dim) / math.sqrt(latent_dim))
        self.mean = nn.Parameter(torch.full((spec.dims,), 0.5))
        self.log_sigma = nn.Parameter(torch.tensor(math.log(0.3)))
        if inference == "encoder":
            self.encoder = nn.Linear(spec.dims, latent_dim)
            self.log_var = nn.Parameter(torch.zeros(latent_dim))

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Each (B,), nats: "loss", -log p(x + u) of one u or its ELBO with the KL in closed form, is "rate", the KL of
        the posterior that is used from the prior, + "distortion", -log p(x + u | z).
        """
        suited(context, self.conditioning, len(x))
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
        suited(context, self.conditioning, len(x))
        y = self.dequantised(x)
        return self.log_density(y) if self.inference == "exact" else self.log_weight(y)

    def dequantised(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> y (B, D) in [0, 1)."""
        self.spec.check(x)
        dtype = self.loadings.dtype
        return ((x.to(dtype) + torch.rand(x.shape, dtype=dtype, device=x.device)) / self.spec.levels).flatten(1)

    def log_density(self, y: Tensor) -> Tensor:
        """log p of y (B, D), as a density of x + u, nats (B,): exact."""
        m, s2 = self._moments()
        centred = (y - self.mean).to(m.dtype)
        root = cholesky(m)
        across = torch.linalg.solve_triangular(root, self.loadings.to(m.dtype).T @ centred.T, upper=False)
        distance = (centred.square().sum(1) - across.square().sum(0)) / s2
        log_det = 2 * root.diagonal().log().sum() + (self.spec.dims - self.latent_dim) * s2.log()
        return -(distance + log_det + self.spec.dims * LOG_2PI) / 2 - self._cells()

    def log_weight(self, y: Tensor) -> Tensor:
        """One draw of log p(y | z) p(z) / q(z | y) of y (B, D), nats (B,): on average over z below `log_density`."""
        mean, log_var = self._encoded(y)
        noise = torch.randn_like(mean)
        z = mean + (log_var / 2).exp() * noise
        return self._conditional(y, z) + (noise.square() - z.square() + log_var).sum(1) / 2

    def posterior(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Integers (B, C, H, W) -> mean and log-variance of q(z | x) or of the exact p(z | x), units one by one (B, L);
        of the middle of the cell of x.
        """
        suited(context, self.conditioning, len(x))
        y = ((x.to(self.loadings.dtype) + 0.5) / self.spec.levels).flatten(1)
        if self.inference == "encoder":
            return self._encoded(y)
        m, s2 = self._moments()
        mean = solve(m, self.loadings.to(m.dtype).T @ (y - self.mean).to(m.dtype).T).T
        return mean.to(y.dtype), (s2 * inverse(m).diagonal()).log().expand_as(mean).to(y.dtype)

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The "code": the mean of the posterior (B, L)."""
        return {"code": self.posterior(x, context)[0]}

    @true_float32()
    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n images (n, C, H, W): y in its cell, what lies outside 0..K-1 in the nearest one. The temperature is that of
        the density of y, whose covariance it multiplies.
        """
        suited(context, self.conditioning, n)
        z, noise = (self._drawn(torch.randn, (n, size), generator) for size in (self.latent_dim, self.spec.dims))
        y = self.mean + math.sqrt(temperature) * (z @ self.loadings.T + self.log_sigma.exp() * noise)
        return self._quantised(y)

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
        """Keep x (B, C, H, W) where known (B, H, W): z from its Gaussian given the known y alone, then the rest."""
        suited(context, self.conditioning, len(x))
        x, known = moved(x, self.loadings.device), moved(known, self.loadings.device)
        where = known[:, None].expand_as(x).flatten(1)
        uniform = self._drawn(torch.rand, where.shape, generator)
        y = (x.flatten(1).to(self.mean.dtype) + uniform) / self.spec.levels
        w, s2 = self.loadings.double(), (2 * self.log_sigma.double()).exp()
        counted = where.double()
        m = torch.einsum("dl,bd,dk->blk", w, counted, w) / s2 + torch.eye(
            self.latent_dim, dtype=w.dtype, device=w.device
        )
        pull = ((counted * (y - self.mean)) @ w / s2)[..., None]
        root = cholesky(m)
        noise = self._drawn(torch.randn, (len(x), self.latent_dim), generator).double()[..., None]
        spread = torch.linalg.solve_triangular(root.mT, noise, upper=True)
        z = (torch.cholesky_solve(pull, root) + math.sqrt(temperature) * spread)[..., 0].to(self.mean)
        rest = self._drawn(torch.randn, where.shape, generator)
        drawn = self._quantised(self.mean + z @ self.loadings.T + math.sqrt(temperature) * self.log_sigma.exp() * rest)
        images = torch.where(where.view_as(x), x.long(), drawn)
        return Completion(images, torch.ones(len(x), device=images.device))

    # ---- parts

    def _moments(self) -> tuple[Tensor, Tensor]:
        """M = W'W + s^2 I (L, L) and s^2, in double precision."""
        w, s2 = self.loadings.double(), (2 * self.log_sigma.double()).exp()
        return w.T @ w + s2 * torch.eye(self.latent_dim, dtype=w.dtype, device=w.device), s2

    def _encoded(self, y: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.encoder(y - 0.5).to(self.mean.dtype)
        return mean, self.log_var.expand_as(mean)

    def _conditional(self, y: Tensor, z: Tensor) -> Tensor:
        """log p(y | z), nats (B,)."""
        error = (y - self.mean - z @ self.loadings.T).square().sum(1) * (-2 * self.log_sigma).exp()
        return -(error + self.spec.dims * (2 * self.log_sigma + LOG_2PI)) / 2 - self._cells()

    def _cells(self) -> float:
        """A density of y is K^D times that of x + u."""
        return self.spec.dims * math.log(self.spec.levels)

    def _quantised(self, y: Tensor) -> Tensor:
        """(B, D) -> integers (B, C, H, W)."""
        return (y * self.spec.levels).floor().clamp(0, self.spec.levels - 1).long().view(-1, *self.spec.shape)

    def _drawn(self, draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """`torch.rand` or `torch.randn` numbers, drawn where the generator lives."""
        device = self.mean.device if generator is None else generator.device
        return moved(draw(shape, generator=generator, device=device), self.mean.device).to(self.mean.dtype)
