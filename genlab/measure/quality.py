"""How like real images samples are, in the features of a classifier: distances of sets, and who is near whom.

    frechet_distance     squared distance of the Gaussians with the two means and covariances (Dowson & Landau 1982;
                         as a measure of samples Heusel et al. 2017, arXiv:1706.08500)
    kernel_distance      unbiased squared maximum mean discrepancy, kernel (x.y / D + 1)^3 (Binkowski et al. 2018,
                         arXiv:1801.01401)
    precision, recall    share of samples within the reach of a real image, and of real images within that of a sample;
                         the reach of an image ends at its k-th neighbour in its own set, k = 3 (Kynkaanniemi et al.
                         2019, arXiv:1904.06991)
    density, coverage    k = 5: real images within whose reach a sample is, over k; share of real images with a sample
                         within reach (Naeem et al. 2020, arXiv:2002.09797): an outlier counts for less than above

The features are those of a classifier that genlab has trained itself, on the data in question. So the distances are
no FID and no KID, which mean Inception features: they compare with one another, for one classifier, and with
nobody else's.

What the number of images does. The Frechet distance is biased upwards by about 1/n, differently for every model; the
kernel distance is unbiased, and may be below 0. Reaches shrink as images are added, so the other four compare for equal
numbers alone; ideal samples have a precision and recall well below 1, a density of 1, and a coverage of 1 - 2^-k for as
many samples as real images. Hence a floor beside every result: real images in the place of the samples.

Features are (N, D) of real images and (M, D) of samples, float64 inside. Pairs are compared in blocks of rows, so
memory is O((N + M) (D + block)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

K_PRECISION, K_DENSITY = 3, 5
PARTS, LARGEST = 10, 1000  # the kernel distance is the mean over so many parts at least, of so many images at most
LEAST = 2 * PARTS  # images of either set
ROUNDING = 1e-12  # a squared distance below this share of the squared lengths is 0

Array = NDArray[Any]


class Estimate(NamedTuple):
    """A measure and its standard error; None: it has none."""

    value: float
    error: float | None = None


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D)."""

    mean: Array
    covariance: Array


def measures(real: Array, samples: Array, *, seed: int = 0) -> dict[str, Estimate]:
    """Every measure of features of samples (M, D) against those of real images (N, D), by name.

    `seed` divides the images into the parts of the kernel distance. ValueError with fewer than `LEAST` images.
    """
    return {
        "frechet_distance": Estimate(frechet(moments(real), moments(samples))),
        "kernel_distance": kernel_distance(real, samples, seed=seed),
        **neighbours(real, samples),
    }


def moments(x: Array) -> Moments:
    """Of features (N, D); the covariance is the unbiased one."""
    x = _checked(x)
    return Moments(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), at least 0.

    The last trace is the sum of the singular values of C_a^1/2 C_b^1/2: no root is taken of a product that rounding has
    made unsymmetric, and singular covariances (fewer images than features) are no exception.
    """
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(0.0, float(np.square(a.mean - b.mean).sum() + spread))


def kernel_distance(x: Array, y: Array, *, seed: int = 0) -> Estimate:
    """Mean and standard error over disjoint random parts of the sets (N, D) and (M, D), each unbiased by itself.

    Disjoint, so that the parts are independent and the error is one: of subsets drawn with overlaps, as is customary,
    it would shrink with their number without end.
    """
    x, y = _checked(x), _checked(y)
    random = np.random.default_rng(seed)
    parts = max(PARTS, -(-max(len(x), len(y)) // LARGEST))
    pairs = zip(*(np.array_split(random.permutation(of), parts) for of in (x, y)), strict=True)
    values = [_mmd(a, b) for a, b in pairs]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(parts)))


def neighbours(
    real: Array, samples: Array, *, k_precision: int = K_PRECISION, k_density: int = K_DENSITY, block: int = 1000
) -> dict[str, Estimate]:
    """Precision and recall, density and coverage of samples (M, D) against real images (N, D).

    Errors are those of a mean over the images that are counted, given the reaches of the others.
    """
    real, samples = _checked(real), _checked(samples)
    centre = real.mean(0)  # short vectors lose the fewest digits in |x|^2 + |y|^2 - 2 x.y
    real, samples = real - centre, samples - centre
    of_real = _reaches(real, (k_precision, k_density), block)
    of_samples = _reaches(samples, (k_precision,), block)[0]
    precise, density = np.zeros(len(samples), bool), np.zeros(len(samples))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, squared in _blocks(real, samples, block):
        precise |= (squared <= of_real[0][rows, None]).any(0)
        within = squared <= of_real[1][rows, None]
        density += within.sum(0) / k_density
        covered[rows] = within.any(1)
        recalled[rows] = (squared <= of_samples).any(1)
    found = {"precision": precise, "recall": recalled, "density": density, "coverage": covered}
    return {name: mean(each) for name, each in found.items()}


def mean(each: Array) -> Estimate:
    """Of one number an image, with its standard error."""
    return Estimate(float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each))))


def _checked(x: Array) -> Array:
    """Features (N, D) in float64."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < LEAST:
        raise ValueError(f"expected features (N, D) of at least {LEAST} images, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features are not finite")
    return x


def _root(covariance: Array) -> Array:
    """The symmetric root; eigenvalues that rounding has made negative are 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _mmd(x: Array, y: Array) -> float:
    """Unbiased squared discrepancy of two parts: means of the kernel within each, without an image and itself, less
    twice the mean between them.
    """

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Array) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def _blocks(x: Array, y: Array, block: int) -> Iterator[tuple[slice, Array]]:
    """Rows of x and their squared distances to all of y, (block, M), a block at a time."""
    lengths = np.square(y).sum(1)
    for start in range(0, len(x), block):
        rows = slice(start, min(start + block, len(x)))
        scale = np.square(x[rows]).sum(1)[:, None] + lengths
        squared = scale - 2 * x[rows] @ y.T
        squared[squared < ROUNDING * scale] = 0  # copies are at distance 0, also where rounding says otherwise
        yield rows, squared


def _reaches(x: Array, ks: tuple[int, ...], block: int) -> list[Array]:
    """Squared distance of every image (N, D) to its k-th neighbour among the others, (N,) for each k."""
    found = np.empty((len(ks), len(x)))
    for rows, squared in _blocks(x, x, block):
        nearest = np.partition(squared, ks, axis=1)  # the nearest of all is the image itself
        found[:, rows] = nearest[:, ks].T
    return list(found)
