"""Distances between samples and real images in a feature space, and measures of how well each set covers the other.

    frechet_distance     squared Fréchet distance between the Gaussians with the means and covariances of the two sets
                         (Dowson & Landau 1982; for samples: Heusel et al. 2017, arXiv:1706.08500)
    kernel_distance      unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al.
                         2018, arXiv:1801.01401)
    precision, recall    share of samples that lie in the ball around some real image, and of real images that lie in
                         the ball around some sample (Kynkäänniemi et al. 2019, arXiv:1904.06991)
    density, coverage    number of balls around real images that a sample lies in, divided by k; share of real images
                         with a sample in their ball (Naeem et al. 2020, arXiv:2002.09797). Outliers among the real
                         images count for less than in precision.

The ball around an image reaches to its k-th nearest neighbour in its own set: k = 3 for precision and recall, k = 5 for
density and coverage.

The features come from a classifier that genlab has trained on the same data, not from an Inception network. So these
distances are not FID and KID: models can be compared under one classifier, but not with published numbers.

How the number of images matters. The Fréchet distance is biased upwards by about 1/n, by a different amount for every
model. The kernel distance is unbiased and may be below 0. Balls shrink as images are added, so the other four measures
can only be compared at equal numbers of images. For samples from the data distribution itself, precision and recall are
well below 1, density is 1, and coverage is 1 - 2^-k if there are as many samples as real images. This is why
`quality.py` reports a floor beside every value, in which real images replace the samples.

Why not torchmetrics. Its Fréchet distance takes the root of the eigenvalues of C_a C_b, which loses half of the digits
when a covariance is singular (features that are linearly dependent, or fewer images than features): a set gets a
distance of -1e-3 to itself. Its kernel distance is the mean over overlapping random subsets of one size for both sets;
the spread of overlapping subsets is no standard error, and ours is. `tests/test_quality.py` compares with torchmetrics
where both are exact.

Shapes: features (N, D) of real images and (M, D) of samples, computed in float64. Distances are computed for a block of
rows at a time, so memory is O((N + M) (D + block)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

K_PRECISION, K_DENSITY = 3, 5
PARTS = 10  # the kernel distance is the mean over at least this many parts of the sets ...
LARGEST_PART = 1000  # ... each with at most this many images
MIN_IMAGES = 2 * PARTS  # in either set
ROUNDING = 1e-12  # a squared distance below this share of the squared lengths counts as 0

Array = NDArray[Any]


class Estimate(NamedTuple):
    """A measure and its standard error, None if it has no error estimate."""

    value: float
    error: float | None = None


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D)."""

    mean: Array
    covariance: Array


def measures(real: Array, samples: Array, *, seed: int = 0) -> dict[str, Estimate]:
    """Every measure of features of samples (M, D) against features of real images (N, D), by name.

    `seed` determines the random parts of the kernel distance. Raises ValueError if a set has fewer than `MIN_IMAGES`
    images or features that are not finite.
    """
    return {
        "frechet_distance": Estimate(frechet(moments(real), moments(samples))),
        "kernel_distance": kernel_distance(real, samples, seed=seed),
        **neighbours(real, samples),
    }


def moments(x: Array) -> Moments:
    """Mean and unbiased covariance of features (N, D)."""
    x = _checked(x)
    return Moments(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), at least 0.

    The last trace is computed as the sum of the singular values of C_a^1/2 C_b^1/2. Unlike the root of the product
    C_a C_b, which is not symmetric, this stays accurate when a covariance is singular.
    """
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(0.0, float(np.square(a.mean - b.mean).sum() + spread))


def kernel_distance(x: Array, y: Array, *, seed: int = 0) -> Estimate:
    """Mean and standard error of the squared discrepancy over disjoint random parts of the sets x (N, D) and y (M, D).

    The value of every part is unbiased. The parts are disjoint, hence independent, so the standard error is valid. The
    usual random subsets overlap: their spread, divided by the root of their number, tends to 0 as more are drawn.
    """
    x, y = _checked(x), _checked(y)
    random = np.random.default_rng(seed)
    parts = max(PARTS, -(-max(len(x), len(y)) // LARGEST_PART))
    pairs = zip(*(np.array_split(random.permutation(images), parts) for images in (x, y)), strict=True)
    values = [_mmd(a, b) for a, b in pairs]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(parts)))


def neighbours(
    real: Array, samples: Array, *, k_precision: int = K_PRECISION, k_density: int = K_DENSITY, block: int = 1000
) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of samples (M, D) against real images (N, D).

    The errors are those of a mean over the images that are counted, with the balls held fixed.
    """
    real, samples = _checked(real), _checked(samples)
    centre = real.mean(0)  # short vectors lose the fewest digits in |x|^2 + |y|^2 - 2 x.y
    real, samples = real - centre, samples - centre
    real_radii = _squared_radii(real, (k_precision, k_density), block)
    sample_radii = _squared_radii(samples, (k_precision,), block)[0]
    precise, density = np.zeros(len(samples), bool), np.zeros(len(samples))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, squared in _squared_distances(real, samples, block):
        precise |= (squared <= real_radii[0][rows, None]).any(0)
        within = squared <= real_radii[1][rows, None]
        density += within.sum(0) / k_density
        covered[rows] = within.any(1)
        recalled[rows] = (squared <= sample_radii).any(1)
    by_image = {"precision": precise, "recall": recalled, "density": density, "coverage": covered}
    return {name: mean(values) for name, values in by_image.items()}


def mean(values: Array) -> Estimate:
    """Mean and standard error of one value for each image (N,)."""
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))


def _checked(x: Array) -> Array:
    """Features (N, D) in float64."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < MIN_IMAGES:
        raise ValueError(f"expected features (N, D) of at least {MIN_IMAGES} images, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features are not finite")
    return x


def _root(covariance: Array) -> Array:
    """The symmetric root. Eigenvalues that are negative because of rounding count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _mmd(x: Array, y: Array) -> float:
    """Unbiased squared discrepancy of two parts x (n, D) and y (m, D).

    It is the mean of the kernel over pairs of different images of x, plus the same for y, minus twice the mean over
    pairs of an image of x and one of y.
    """

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Array) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def _squared_distances(x: Array, y: Array, block: int) -> Iterator[tuple[slice, Array]]:
    """For a block of rows of x at a time: the rows, and their squared distances to all rows of y, (block, M)."""
    lengths = np.square(y).sum(1)
    for start in range(0, len(x), block):
        rows = slice(start, min(start + block, len(x)))
        scale = np.square(x[rows]).sum(1)[:, None] + lengths
        squared = scale - 2 * x[rows] @ y.T
        squared[squared < ROUNDING * scale] = 0  # copies are at distance 0 despite rounding
        yield rows, squared


def _squared_radii(x: Array, ks: tuple[int, ...], block: int) -> list[Array]:
    """Squared distance of every row of x (N, D) to its k-th nearest other row, (N,) for each k."""
    radii = np.empty((len(ks), len(x)))
    for rows, squared in _squared_distances(x, x, block):
        nearest = np.partition(squared, ks, axis=1)  # index 0 is the image itself
        radii[:, rows] = nearest[:, ks].T
    return list(radii)
