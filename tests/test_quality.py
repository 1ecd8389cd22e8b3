"""Sample quality: nothing between a set and itself, the closed forms of Gaussians, no bias, blocks equal the naive."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from genlab.measure import quality
from genlab.measure.quality import Moments

N = 400


def gaussian(n, shift=0.0, scale=1.0, seed=0, width=4):
    """n draws of N(shift, scale^2 I)."""
    return shift + scale * np.random.default_rng(seed).normal(size=(n, width))


def covariance(seed, width=5, rank=5):
    """A random one."""
    a = np.random.default_rng(seed).normal(size=(width, rank))
    return a @ a.T


def test_a_set_is_at_no_distance_from_itself():
    x = gaussian(N)
    found = quality.measures(x, x)
    assert found["frechet_distance"].value == pytest.approx(0, abs=1e-12)
    assert found["precision"].value == found["recall"].value == found["coverage"].value == 1
    assert quality.frechet(*[Moments(np.zeros(5), covariance(1, rank=2))] * 2) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_is_that_of_gaussians():
    # Diagonal: |m_a - m_b|^2 + sum (s_a - s_b)^2.
    s_a, s_b, m = np.array([1.0, 2, 0]), np.array([3.0, 0.5, 1]), np.array([1.0, -2, 0.5])
    found = quality.frechet(Moments(m, np.diag(s_a**2)), Moments(0 * m, np.diag(s_b**2)))
    assert found == pytest.approx((m**2).sum() + ((s_a - s_b) ** 2).sum(), abs=1e-12)


def test_the_frechet_distance_of_any_covariances():
    a, b = covariance(1), covariance(2)
    naive = np.trace(a + b - 2 * sqrtm(a @ b).real)
    found = [quality.frechet(Moments(np.zeros(5), p), Moments(np.zeros(5), q)) for p, q in ((a, b), (b, a))]
    np.testing.assert_allclose(found, naive, rtol=1e-9)


def test_moments_are_those_of_the_set():
    x = gaussian(50, shift=3)
    np.testing.assert_allclose(quality.moments(x).mean, x.mean(0))
    np.testing.assert_allclose(quality.moments(x).covariance, (x - x.mean(0)).T @ (x - x.mean(0)) / 49)


def test_the_kernel_distance_is_unbiased():
    """Of equal distributions it is 0 on average, whatever the number of images; of different ones what it should be."""
    for n, m in ((40, 40), (30, 90)):
        found = [quality.kernel_distance(gaussian(n, seed=2 * i), gaussian(m, seed=2 * i + 1)) for i in range(300)]
        values = np.array([each.value for each in found])
        assert abs(values.mean()) < 3 * values.std() / math.sqrt(300)
        # The error that is claimed is the one that there is.
        assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(values.std(), rel=0.2)


def test_the_kernel_distance_of_one_pair_of_parts():
    """Against sums written out, for one-dimensional features where the expectation is known: x = 0, y = c."""
    x, y = np.zeros((40, 1)), np.full((60, 1), 2.0)
    assert quality.kernel_distance(x, y).value == pytest.approx(1 + 5**3 - 2)
    x, y = gaussian(5, seed=1), gaussian(7, shift=1, seed=2)
    k = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731
    naive = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
    naive += sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 42
    naive -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert quality._mmd(x, y) == pytest.approx(naive)


def test_parts_stay_small(monkeypatch):
    monkeypatch.setattr(quality, "LARGEST", 20)
    sizes = []
    monkeypatch.setattr(quality, "_mmd", lambda x, y: sizes.append((len(x), len(y))) or float(len(sizes)))
    quality.kernel_distance(gaussian(300), gaussian(450))
    assert len(sizes) == 23
    assert max(max(pair) for pair in sizes) <= 20
    assert sum(x for x, _ in sizes) == 300


def test_neighbours_of_shifted_gaussians():
    real = gaussian(N)
    same, narrow, wide, far = (
        {name: each.value for name, each in quality.neighbours(real, gaussian(N, seed=1, **how)).items()}
        for how in ({}, {"scale": 0.3}, {"scale": 4.0}, {"shift": 20.0})
    )
    # What is expected of equal distributions: density 1, coverage 1 - 2^-5.
    assert same["density"] == pytest.approx(1, abs=0.15)
    assert same["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert min(same["precision"], same["recall"]) > 0.7
    # Too little variety: all near real images, few of which are reached. Too much: the reverse.
    assert narrow["precision"] > 0.95
    assert narrow["recall"] < 0.3
    assert narrow["coverage"] < same["coverage"]
    assert narrow["density"] > 1.2
    assert wide["precision"] < 0.3
    assert wide["recall"] > 0.9
    assert wide["density"] < 0.3
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def naive_neighbours(real, samples, k_precision, k_density):
    """The definitions, pair by pair."""

    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    def reach(x, k):
        return np.sort(distances(x, x), 1)[:, k]

    d = distances(real, samples)
    within = d <= reach(real, k_density)[:, None]
    return {
        "precision": (d <= reach(real, k_precision)[:, None]).any(0).mean(),
        "recall": (d <= reach(samples, k_precision)[None]).any(1).mean(),
        "density": within.sum() / (k_density * len(samples)),
        "coverage": within.any(1).mean(),
    }


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_equal_the_naive(block):
    real, samples = gaussian(60), gaussian(45, shift=0.7, scale=1.3, seed=1)
    found = quality.neighbours(real, samples, k_precision=2, k_density=4, block=block)
    for name, value in naive_neighbours(real, samples, 2, 4).items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("block", [3, 7, 1000])
def test_copies_are_at_no_distance(block):
    """A generator that has collapsed into a few images, themselves real: rounding errors do not decide."""
    real = np.repeat(gaussian(10, scale=1e3, width=37), 7, axis=0)
    found = quality.neighbours(real, real[::2], block=block)
    assert found["precision"].value == found["recall"].value == 1
    for rows, squared in quality._blocks(real, real[::2], block):
        same = (real[rows, None] == real[None, ::2]).all(2)
        assert ((squared == 0) == same).all()


def test_too_few_images_and_no_numbers_are_refused():
    with pytest.raises(ValueError, match="at least 20"):
        quality.measures(gaussian(19), gaussian(50))
    with pytest.raises(ValueError, match="finite"):
        quality.measures(gaussian(30), np.full((30, 4), np.nan))


def test_an_error_is_that_of_a_mean():
    found = quality.mean(np.arange(4) < 3)
    assert found == (0.75, pytest.approx(math.sqrt(0.1875 * 4 / 3 / 4)))
