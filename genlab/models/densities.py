"""Densities of codes, fitted after training: a Gaussian, or a mixture of Gaussians by scikit-learn's EM.

`models/mixture.py` also uses two functions of this file: `clusters` (k-means) and `factors` (covariances with a floor).

An autoencoder gives codes no probability. To draw images from it, a density is fitted to the codes of the training
images by maximum likelihood (as Ghosh et al. 2020, arXiv:1903.12436, do for regularised autoencoders). The fit
uses neither the decoder nor the range of possible codes.

N codes h (N, L), M components.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genlab.core import RequestError

EM_STEPS, GAIN = 100, 1e-3  # EM ends after so many steps, or when a step gains less, in nats per image and unit
KMEANS_STEPS = 20  # few, because EM changes the result anyway


@dataclass(frozen=True)
class Mixture:
    """sum_m weights_m N(means_m, factors_m factors_m^T): weights (M,), means (M, L), factors (M, L, L); float64.

    `converged`: True if EM ended because a step gained little.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    converged: bool = True

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """n vectors (n, L) from the density to the power 1 / temperature: a Gaussian with a scaled covariance.

        Raises RequestError for several components and a temperature other than 1: a power of a mixture is no mixture.
        """
        if temperature != 1 and len(self.weights) > 1:
            raise RequestError(f"temperature={temperature:g} is for one Gaussian, not for a mixture of them")
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.double)
        drawn = torch.empty_like(noise)
        for m in which.unique():  # one component after another, because n factors (L, L) need too much memory
            drawn[which == m] = self.means[m] + temperature**0.5 * noise[which == m] @ self.factors[m].T
        return drawn


def fit_gaussian(h: Tensor) -> Mixture:
    """The Gaussian with mean and full covariance of codes (N, L).

    Raises RequestError unless N >= 2 and all are finite.
    """
    _check(h, 2)
    h = h.double()
    return Mixture(torch.ones(1, dtype=torch.double), h.mean(0)[None], factors(torch.atleast_2d(h.T.cov())[None]))


def fit_mixture(h: Tensor, components: int, *, seed: int = 0) -> Mixture:
    """`components` Gaussians with full covariances, fitted to codes (N, L) by EM from k-means.

    Units are scaled to variance 1 for the fit, because scikit-learn adds 1e-6 to every variance. A step takes
    components * N * L^2 operations: seconds for tens of units, minutes for hundreds. Raises RequestError for fewer
    codes than components.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    _check(h, max(2, components))
    h = h.double()
    mean, scale = h.mean(0), h.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    em = GaussianMixture(components, max_iter=EM_STEPS, tol=GAIN * h.shape[1], random_state=seed % 2**32)
    with warnings.catch_warnings():  # `converged` reports it
        warnings.simplefilter("ignore", ConvergenceWarning)
        em.fit(((h - mean) / scale).numpy())
    covariances = torch.from_numpy(em.covariances_) * scale * scale[:, None]
    means = torch.from_numpy(em.means_) * scale + mean
    return Mixture(torch.from_numpy(np.asarray(em.weights_)), means, factors(covariances), bool(em.converged_))


def _check(h: Tensor, least: int) -> None:
    if len(h) < least:
        raise RequestError(f"a density of codes needs at least {least} images to be fitted to, and there are {len(h)}")
    if not h.isfinite().all():
        raise RequestError("the codes of some training images are not finite numbers: nothing can be fitted to them")


def factors(covariances: Tensor, floor: float = 0.0) -> Tensor:
    """Covariances (M, L, L) -> F with F F^T = the covariance, also for singular ones (units that are constant).

    Eigenvalues below `floor` are raised to it. Then F F^T is the most likely covariance without smaller eigenvalues.
    """
    values, vectors = torch.linalg.eigh(covariances)
    return vectors * values.clamp(min=floor).sqrt()[:, None, :]


def clusters(v: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Vectors (N, L) -> the number of each vector's cluster (N,), by k-means with `count` clusters."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # fewer different vectors than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(count, n_init=1, max_iter=KMEANS_STEPS, random_state=seed % 2**32).fit(v.cpu().numpy())
    return torch.from_numpy(kmeans.labels_).long().to(v.device)
