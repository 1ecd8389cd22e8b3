"""Densities fitted to codes after training: a Gaussian, or a mixture of them by scikit-learn's EM; and what the
mixtures of images share with them, a start by k-means and covariances with a floor.

An autoencoder says nothing about how probable a code is, so drawing images from it takes a density that it was not
trained for (Ghosh et al. 2020, arXiv:1903.12436, do this for regularised autoencoders). It is fitted by maximum
likelihood to the codes of the training images, and neither knows of the decoder nor of what vectors can be codes.

N codes h (N, L), M components.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genlab.core import RequestError

EM_STEPS, GAIN = 100, 1e-3  # EM ends after so many steps, or when one gains less than this, nats per image and unit
MEANS_STEPS = 20  # of k-means, whose result EM changes anyway


@dataclass(frozen=True)
class Mixture:
    """sum_m weights_m N(means_m, factors_m factors_m^T): weights (M,), means (M, L), factors (M, L, L); float64.

    `converged`: whether the fit came to its end.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    converged: bool = True

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """n vectors (n, L), from the density to the power 1 / temperature: a Gaussian of temperature times the
        covariance. RequestError for a temperature other than 1 of several components, whose power is no mixture.
        """
        if temperature != 1 and len(self.weights) > 1:
            raise RequestError(f"temperature={temperature:g} is for one Gaussian, not for a mixture of them")
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.double)
        drawn = torch.empty_like(noise)
        for m in which.unique():  # component by component: n factors (L, L) at once would not fit
            drawn[which == m] = self.means[m] + temperature**0.5 * noise[which == m] @ self.factors[m].T
        return drawn


def fit_gaussian(h: Tensor) -> Mixture:
    """Mean and full covariance of codes (N, L), N >= 2."""
    _check(h, 2)
    h = h.double()
    return Mixture(torch.ones(1, dtype=torch.double), h.mean(0)[None], factors(torch.atleast_2d(h.T.cov())[None]))


def fit_mixture(h: Tensor, components: int, *, seed: int = 0) -> Mixture:
    """`components` Gaussians of full covariance, fitted to codes (N, L) by EM from k-means.

    Units are brought to variance 1 meanwhile, because scikit-learn adds 1e-6 to variances, whatever the units are.
    Takes components * N * L^2 operations a step: seconds for tens of units, minutes for hundreds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    _check(h, max(2, components))
    h = h.double()
    mean, scale = h.mean(0), h.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    em = GaussianMixture(components, max_iter=EM_STEPS, tol=GAIN * h.shape[1], random_state=seed % 2**32)
    with warnings.catch_warnings():  # said by `converged`, and fewer different codes than components by the result
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
    """(M, L, L) -> F with F F^T the same; singular ones too, as those of dead units are. Eigenvalues are raised to
    `floor`: then F F^T is the likeliest of the covariances that have none below it.
    """
    values, vectors = torch.linalg.eigh(covariances)
    return vectors * values.clamp(min=floor).sqrt()[:, None, :]


def clusters(v: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Which of `count` clusters each of the vectors (N, L) is in, by k-means: (N,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # fewer different vectors than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, max_iter=MEANS_STEPS, random_state=seed % 2**32).fit(v.cpu().numpy())
    return torch.from_numpy(found.labels_).long().to(v.device)
