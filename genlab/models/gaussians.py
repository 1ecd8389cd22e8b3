"""Gaussian components of a mixture, with diagonal, full or low-rank covariances, of values or of cells.

    Diagonal   N(y; mean, diag s^2)
    Full       N(y; mean, L L'), L lower triangular with diagonal s
    LowRank    N(y; mean, F F' + diag s^2), F with R columns: factor analysis (Ghahramani & Hinton 1996, CRG-TR-96-1);
               if all s of a component are equal this is probabilistic PCA (Tipping & Bishop 1999)
    Cells      the mass of N(mean, diag s^2) in the cell of each integer, with the tails in the outermost cells

y are values in units of the image's range: level x has the cell [x, x + 1) / K. s^2 = floor^2 + exp(2 log_std), so no
component shrinks to a point. Each class has these methods:

    log_density(v, at)               nats (B, M) of values v at the dimensions `at`, with the others integrated out
    complete(v, at, which, noise)    the other dimensions drawn given those, image b from component which[b]
    update(m, v, w)                  component m of an EM step, from images v (n, D) of responsibility w (n,)

`update` never lowers sum_n w_n log p(v_n | m). For Diagonal and Full it finds the maximum. For LowRank and Cells it
takes EM steps within the EM step of the mixture: over the factors, and over the positions of the values in their cells.
`temperature` multiplies covariances, which is N^(1/T).

scikit-learn's mixtures have neither cells nor low-rank covariances, and do not run on a GPU; so we have our own.

M components, D dimensions, B or n images, R factors, K levels. Everything is computed in float64, because expanded
squares and small masses are differences of large numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.special import log_ndtr

from genlab.models.densities import factors
from genlab.system.device import cholesky, moved, solve

LOG_2PI = math.log(2 * math.pi)
INNER_STEPS = 10  # EM steps of LowRank and Cells in one step of the mixture: they are cheap and converge slowly
CHUNK = 1024  # images whose cells are looked up together
LEAST = 1e-6  # exp(2 log_std) is at least this share of floor^2, so that it has a logarithm


class Gaussians(nn.Module):
    """Means and deviations of M components. `floor`: the smallest deviation, in units of the range."""

    chunk = 4096  # images of an E step that are processed together

    def __init__(self, components: int, dims: int, levels: int, floor: float) -> None:
        super().__init__()
        self.dims, self.levels, self.floor, self.noise_size = dims, levels, floor, dims
        self.means = nn.Parameter(0.5 + 0.1 * torch.randn(components, dims))
        self.log_std = nn.Parameter(torch.full((components, dims), math.log(0.3)))

    def deviation(self) -> Tensor:
        """s (M, D)."""
        return deviation(self.log_std.double(), self.floor)

    def keep(self, m: int, mean: Tensor, variance: Tensor) -> None:
        """Set the mean (D,) and s^2 (D,) of component m; s is at least the floor."""
        least = self.floor**2
        self.means[m] = mean.to(self.means)
        self.log_std[m] = ((variance - least).clamp(min=LEAST * least).log() / 2).to(self.log_std)


class Diagonal(Gaussians):
    """Independent values."""

    def log_density(self, v: Tensor, at: Tensor, temperature: float = 1.0) -> Tensor:
        """Values (B, |at|) -> nats (B, M)."""
        mean, s = self.means.double()[:, at], self.deviation()[:, at] * math.sqrt(temperature)
        return -(squares(v, mean, s) + len(at) * LOG_2PI) / 2 - s.log().sum(1)

    def complete(self, v: Tensor, at: Tensor, which: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Values (B, |at|) -> values (B, D)."""
        drawn = self.means.double()[which] + math.sqrt(temperature) * self.deviation()[which] * noise
        return drawn.index_copy(1, at, v.to(drawn))

    def update(self, m: int, v: Tensor, w: Tensor) -> None:
        """The weighted mean and variances."""
        mean = w @ v / w.sum()
        self.keep(m, mean, w @ (v - mean).square() / w.sum())


class Cells(Diagonal):
    """As Diagonal, but v are integers, and `log_density` is the mass of their cells. Masses sum to 1."""

    chunk = 1 << 30  # all images, so that the table of masses is computed once

    def log_density(self, v: Tensor, at: Tensor, temperature: float = 1.0) -> Tensor:
        """Integers (B, |at|) -> nats (B, M).

        The mass of a level at a pixel is computed once for all images that have it. Sums start from the image of each
        pixel's most frequent level, and only differences from it are added: most pixels of digits have that level.
        """
        mean, s = self.means.double()[:, at], self.deviation()[:, at] * math.sqrt(temperature)
        counts = torch.stack([self._counts(part, len(at)) for part in v.split(CHUNK)]).sum(0)
        # On a GPU the table has a row for every cell: to learn which cells are filled, the host would have to wait.
        sparse = v.device.type == "cpu"
        filled = counts.nonzero()[:, 0] if sparse else torch.arange(len(counts), device=v.device)
        dim, level = filled // self.levels, filled % self.levels
        each = zip(mean, s, strict=True)
        table = torch.stack([log_mass(level, a[dim], b[dim], self.levels) for a, b in each], 1)  # (filled, M)
        row = (counts > 0).cumsum(0) - 1 if sparse else filled  # row of a cell in the table
        first = self.levels * torch.arange(len(at), device=v.device)
        frequent = counts.view(len(at), -1).argmax(1)
        common = table[row[first + frequent]]  # (|at|, M)
        differences = (table - common[dim]).to(self.means.dtype)
        sums = []
        for part in v.split(CHUNK):
            if not sparse:
                sums.append(F.embedding_bag(part.long() + first, differences, mode="sum"))
                continue
            rare = part != frequent
            index, ends = row[(part.long() + first)[rare]], rare.sum(1).cumsum(0)
            sums.append(F.embedding_bag(index, differences, ends - rare.sum(1), mode="sum"))
        return torch.cat(sums) + common.sum(0)

    def complete(self, v: Tensor, at: Tensor, which: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Integers (B, |at|) -> values (B, D), with the known ones in the middle of their cells."""
        return super().complete((v.double() + 0.5) / self.levels, at, which, noise, temperature)

    def update(self, m: int, v: Tensor, w: Tensor) -> None:
        """EM over the positions of values in their cells (Dempster et al. 1977, J. R. Stat. Soc. B 39, sec. 4.2).

        By Fisher's identity the gradient of log P gives the moments that EM needs: E[y] = mean + s^2 dlogP/dmean and
        E[((y - mean)/s)^2] = 1 + dlogP/dlog s.
        """
        counts = self._counts(v, self.dims, w.repeat_interleave(self.dims))
        total, filled = w.sum(), counts.nonzero()[:, 0]
        counts, dim, level = counts[filled], filled // self.levels, filled % self.levels
        for _ in range(INNER_STEPS):
            mean, log_s = self.means[m].double().clone(), self.deviation()[m].log()
            with torch.enable_grad():
                mean.requires_grad_(), log_s.requires_grad_()
                nats = (counts * log_mass(level, mean[dim], log_s[dim].exp(), self.levels)).sum()
            by_mean, by_log_s = torch.autograd.grad(nats, (mean, log_s))
            variance = log_s.detach().mul(2).exp()
            shift = variance * by_mean / total
            self.keep(m, mean.detach() + shift, variance * (1 + by_log_s / total) - shift.square())

    def _counts(self, v: Tensor, dims: int, weights: Tensor | None = None) -> Tensor:
        """Integers v (n, dims) -> how often each cell occurs, or the sum of its weights (n dims,): (dims K,)."""
        cells = v.long() + self.levels * torch.arange(dims, device=v.device)
        weights = cells.new_ones(()).expand(cells.numel()) if weights is None else weights
        return weights.new_zeros(self.levels * dims).index_add_(0, cells.flatten(), weights)


class Full(Gaussians):
    """A full covariance L L', by its Cholesky factor L."""

    def __init__(self, components: int, dims: int, levels: int, floor: float) -> None:
        super().__init__(components, dims, levels, floor)
        self.lower = nn.Parameter(torch.zeros(components, dims, dims))  # only values below the diagonal are used

    def triangle(self, m: int) -> Tensor:
        """L (D, D)."""
        return self.lower[m].double().tril(-1) + self.deviation()[m].diag()

    def log_density(self, v: Tensor, at: Tensor, temperature: float = 1.0) -> Tensor:
        """Values (B, |at|) -> nats (B, M)."""
        nats = []
        order = at if len(at) < self.dims else None
        for m, mean in enumerate(self.means.double()[:, at]):
            triangle = math.sqrt(temperature) * self._triangle(m, order)
            z = torch.linalg.solve_triangular(triangle, (v - mean).T, upper=False)
            nats.append(-(z.square().sum(0) + len(at) * LOG_2PI) / 2 - triangle.diagonal().log().sum())
        return torch.stack(nats, 1)

    def complete(self, v: Tensor, at: Tensor, which: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Values (B, |at|) -> values (B, D), by the rows of L that belong to the unknown dimensions, the last ones."""
        unknown = _others(self.dims, at)
        every, n = torch.cat([at, unknown]), len(at)
        order = None if torch.equal(every, torch.arange(self.dims, device=every.device)) else every
        drawn = torch.empty_like(noise).index_copy_(1, at, v)
        for m, index in _members(which):
            mean, triangle = self.means[m].double(), self._triangle(m, order)
            z = math.sqrt(temperature) * noise[index].T  # (D, n)
            z[:n] = torch.linalg.solve_triangular(triangle[:n, :n], (v[index] - mean[at]).T, upper=False)
            drawn[index[:, None], unknown] = mean[unknown] + (triangle[n:] @ z).T
        return drawn

    def update(self, m: int, v: Tensor, w: Tensor) -> None:
        """The weighted mean and covariance, with eigenvalues raised to the floor."""
        mean = w @ v / w.sum()
        root = (v - mean) * (w / w.sum()).sqrt()[:, None]
        f = factors((root.T @ root)[None], (1 + LEAST) * self.floor**2)[0]
        triangle = cholesky(f @ f.T)
        self.keep(m, mean, triangle.diagonal().square())
        self.lower[m] = triangle.tril(-1).to(self.lower)

    def _triangle(self, m: int, order: Tensor | None) -> Tensor:
        """Cholesky factor of the covariance of the dimensions `order`, in that order; None: of all dimensions."""
        triangle = self.triangle(m)
        if order is None:
            return triangle
        rows = triangle[order]
        return cholesky(rows @ rows.T)


class LowRank(Gaussians):
    """F F' + diag s^2. `rank`: columns of F."""

    def __init__(self, components: int, dims: int, levels: int, floor: float, rank: int) -> None:
        super().__init__(components, dims, levels, floor)
        self.rank, self.noise_size = rank, dims + rank
        self.loadings = nn.Parameter(0.1 * torch.randn(components, dims, rank) / math.sqrt(rank))

    def log_density(self, v: Tensor, at: Tensor, temperature: float = 1.0) -> Tensor:
        """Values (B, |at|) -> nats (B, M), by R x R matrices (Woodbury)."""
        s, f = (math.sqrt(temperature) * part for part in (self.deviation()[:, at], self.loadings.double()[:, at]))
        mean = self.means.double()[:, at]
        g = f / s[..., None]  # (M, |at|, R)
        triangle = cholesky(self._inner(g))
        h = g / s[..., None]
        projected = torch.einsum("bd,mdr->mrb", v, h) - torch.einsum("md,mdr->mr", mean, h)[..., None]
        z = torch.linalg.solve_triangular(triangle, projected, upper=False)
        log_det = s.log().sum(1) + triangle.diagonal(dim1=1, dim2=2).log().sum(1)
        return -(squares(v, mean, s) - z.square().sum(1).T + len(at) * LOG_2PI) / 2 - log_det

    def complete(self, v: Tensor, at: Tensor, which: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Values (B, |at|) -> values (B, D): factors given the known dimensions, then the others given factors."""
        heat, drawn = math.sqrt(temperature), torch.empty_like(noise[:, : self.dims])
        for m, index in _members(which):
            mean, s, f = self.means[m].double(), self.deviation()[m], self.loadings[m].double()
            g = f[at] / s[at, None]
            triangle = cholesky(self._inner(g))
            of_values, of_factors = noise[index].split([self.dims, self.rank], 1)
            projected = g.T @ ((v[index] - mean[at]) / (heat * s[at])).T
            # z ~ N(A^-1 projected, A^-1) with A = L L'
            z = torch.linalg.solve_triangular(triangle, projected, upper=False) + of_factors.T
            z = torch.linalg.solve_triangular(triangle.T, z, upper=True)
            drawn[index] = mean + heat * ((f @ z).T + s * of_values)
        return drawn.index_copy(1, at, v)

    def update(self, m: int, v: Tensor, w: Tensor) -> None:
        """The weighted mean; then EM over the factors (Ghahramani & Hinton 1996), by products with the covariance."""
        share = w / w.sum()
        mean = share @ v
        v = v - mean
        variance, f, s = share @ v.square(), self.loadings[m].double(), self.deviation()[m]
        for _ in range(INNER_STEPS):
            g = f / s[:, None]
            back = solve(self._inner(g), g.T) / s  # E[z | v] = back v, (R, D)
            z = v @ back.T
            crossed = v.T @ (share[:, None] * z)  # E[v z'], (D, R)
            second = torch.eye(self.rank, dtype=f.dtype, device=f.device) - back @ f + back @ crossed
            f = solve(second, crossed, left=False)
            residual = variance - (f * crossed).sum(1)
            s = residual.clamp(min=(1 + LEAST) * self.floor**2).sqrt()
        self.keep(m, mean, s.square())
        self.loadings[m] = f.to(self.loadings)

    def _inner(self, g: Tensor) -> Tensor:
        """I + G'G (..., R, R)."""
        return torch.eye(self.rank, dtype=g.dtype, device=g.device) + g.mT @ g


def deviation(log_std: Tensor, floor: float) -> Tensor:
    """s = sqrt(floor^2 + exp(2 log_std)), of any shape."""
    return (floor**2 + (2 * log_std).exp()).sqrt()


def squares(v: Tensor, mean: Tensor, s: Tensor) -> Tensor:
    """sum_d ((v - mean) / s)^2 of values (B, D) and components (M, D): (B, M), by products of matrices."""
    rate = s.square().reciprocal()
    return v.square() @ rate.T - 2 * v @ (rate * mean).T + (rate * mean.square()).sum(1)


def log_mass(x: Tensor, mean: Tensor, s: Tensor, levels: int) -> Tensor:
    """log P of the cells of integers x, broadcast against mean and deviation s in units of the range; nats, float64."""
    edge = x.double() / levels
    low = torch.where(x > 0, (edge - mean) / s, -torch.inf)
    high = torch.where(x < levels - 1, (edge + 1 / levels - mean) / s, torch.inf)
    return _LogMass.apply(low, high)  # type: ignore[no-any-return]


class _LogMass(torch.autograd.Function):
    """log(Phi(b) - Phi(a)), a < b, on the side where Phi is small. The derivatives are -phi(a)/P and phi(b)/P."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        side = torch.where(a + b > 0, -1.0, 1.0)  # the mirror image to the left of 0 has the same mass
        near, far = log_ndtr(torch.maximum(side * a, side * b)), log_ndtr(torch.minimum(side * a, side * b))
        log_p = near + torch.log1p(-(far - near).exp())
        ctx.save_for_backward(a, b, log_p)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b, log_p = ctx.saved_tensors
        by_a, by_b = ((-(z.square() + LOG_2PI) / 2 - log_p).exp() * g for z in (a, b))
        return -by_a, by_b


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw an index for each row of weights (B, P), by uniform numbers (B,): (B,)."""
    cdf = weights.cumsum(1)
    return torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _others(dims: int, at: Tensor) -> Tensor:
    """The dimensions that are not in `at`, in order."""
    taken = torch.zeros(dims, dtype=torch.int8, device=at.device).index_fill_(0, at, 1)
    return taken.sort(stable=True).indices[: dims - len(at)]


def _members(which: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield every component that occurs in `which` (B,), with the indices of its images (n,)."""
    host = which.cpu()
    for m in host.unique().tolist():
        yield m, moved((host == m).nonzero()[:, 0], which.device)
