"""Distances of feature sets: 0 between equal sets, closed forms of Gaussians, no bias, equal to naive computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from genlab.measure import feature_distances
from genlab.measure.feature_distances import Moments, frechet, kernel_distance, mean, measures, moments, neighbours

N = 400


def gaussian(n, shift=0.0, scale=1.0, seed=0, width=4):
    """n draws of N(shift, scale^2 I)."""
    return shift + scale * np.random.default_rng(seed).normal(size=(n, width))


def covariance(seed, width=5, rank=5):
    """A random one."""
    a = np.random.default_rng(seed).normal(size=(width, rank))
    return a @ a.T


def test_a_set_has_distance_0_to_itself():
    x = gaussian(N)
    values = measures(x, x)
    assert values["frechet_distance"].value == pytest.approx(0, abs=1e-12)
    assert values["precision"].value == values["recall"].value == values["coverage"].value == 1
    assert frechet(*[Moments(np.zeros(5), covariance(1, rank=2))] * 2) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_is_that_of_gaussians():
    # Diagonal: |m_a - m_b|^2 + sum (s_a - s_b)^2.
    s_a, s_b, m = np.array([1.0, 2, 0]), np.array([3.0, 0.5, 1]), np.array([1.0, -2, 0.5])
    distance = frechet(Moments(m, np.diag(s_a**2)), Moments(0 * m, np.diag(s_b**2)))
    assert distance == pytest.approx((m**2).sum() + ((s_a - s_b) ** 2).sum(), abs=1e-12)


def test_the_frechet_distance_of_any_covariances():
    a, b = covariance(1), covariance(2)
    naive = np.trace(a + b - 2 * sqrtm(a @ b).real)
    distances = [frechet(Moments(np.zeros(5), p), Moments(np.zeros(5), q)) for p, q in ((a, b), (b, a))]
    np.testing.assert_allclose(distances, naive, rtol=1e-9)


class Given(torch.nn.Module):
    """The feature extractor of torchmetrics whose features are its input."""

    num_features = 4

    def forward(self, x):
        """As it is."""
        return x


def test_the_distances_are_those_of_torchmetrics():
    x, y = gaussian(N), gaussian(150, shift=0.5, scale=1.5, seed=1)
    metric = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    assert frechet(moments(x), moments(y)) == pytest.approx(metric.compute().item(), rel=1e-9)
    x, y = x[:50], y[:50]  # poly_mmd takes sets of one size
    assert feature_distances._mmd(x, y) == pytest.approx(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)).item())


def test_moments_are_those_of_the_set():
    x = gaussian(50, shift=3)
    np.testing.assert_allclose(moments(x).mean, x.mean(0))
    np.testing.assert_allclose(moments(x).covariance, (x - x.mean(0)).T @ (x - x.mean(0)) / 49)


def test_the_kernel_distance_is_unbiased():
    """Between draws of one distribution it is 0 on average, whatever the number of images."""
    for n, m in ((40, 40), (30, 90)):
        estimates = [kernel_distance(gaussian(n, seed=2 * i), gaussian(m, seed=2 * i + 1)) for i in range(300)]
        values = np.array([estimate.value for estimate in estimates])
        assert abs(values.mean()) < 3 * values.std() / math.sqrt(300)
        # The standard error is the spread that there is.
        assert np.sqrt(np.mean([estimate.error**2 for estimate in estimates])) == pytest.approx(values.std(), rel=0.2)


def test_the_kernel_distance_of_one_pair_of_parts():
    """Against sums written out, and for one-dimensional features where the expectation is known: x = 0, y = c."""
    x, y = np.zeros((40, 1)), np.full((60, 1), 2.0)
    assert kernel_distance(x, y).value == pytest.approx(1 + 5**3 - 2)
    x, y = gaussian(5, seed=1), gaussian(7, shift=1, seed=2)
    k = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731
    naive = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
    naive += sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 42
    naive -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert feature_distances._mmd(x, y) == pytest.approx(naive)


def test_parts_stay_small(monkeypatch):
    monkeypatch.setattr(feature_distances, "LARGEST_PART", 20)
    sizes = []
    monkeypatch.setattr(feature_distances, "_mmd", lambda x, y: sizes.append((len(x), len(y))) or float(len(sizes)))
    kernel_distance(gaussian(300), gaussian(450))
    assert len(sizes) == 23
    assert max(max(pair) for pair in sizes) <= 20
    assert sum(x for x, _ in sizes) == 300


def test_neighbours_of_shifted_gaussians():
    real = gaussian(N)
    same, narrow, wide, far = (
        {name: estimate.value for name, estimate in neighbours(real, gaussian(N, seed=1, **how)).items()}
        for how in ({}, {"scale": 0.3}, {"scale": 4.0}, {"shift": 20.0})
    )
    # What is expected of equal distributions: density 1, coverage 1 - 2^-5.
    assert same["density"] == pytest.approx(1, abs=0.15)
    assert same["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert min(same["precision"], same["recall"]) > 0.7
    # Too little variety: all are near real images, but few real images are reached. Too much: the reverse.
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

    def radius(x, k):
        return np.sort(distances(x, x), 1)[:, k]

    d = distances(real, samples)
    within = d <= radius(real, k_density)[:, None]
    return {
        "precision": (d <= radius(real, k_precision)[:, None]).any(0).mean(),
        "recall": (d <= radius(samples, k_precision)[None]).any(1).mean(),
        "density": within.sum() / (k_density * len(samples)),
        "coverage": within.any(1).mean(),
    }


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_equal_the_naive(block):
    real, samples = gaussian(60), gaussian(45, shift=0.7, scale=1.3, seed=1)
    estimates = neighbours(real, samples, k_precision=2, k_density=4, block=block)
    for name, value in naive_neighbours(real, samples, 2, 4).items():
        assert estimates[name].value == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("block", [3, 7, 1000])
def test_copies_are_at_distance_0(block):
    """A generator that has collapsed onto a few real images: rounding errors do not decide."""
    real = np.repeat(gaussian(10, scale=1e3, width=37), 7, axis=0)
    estimates = neighbours(real, real[::2], block=block)
    assert estimates["precision"].value == estimates["recall"].value == 1
    for rows, squared in feature_distances._squared_distances(real, real[::2], block):
        same = (real[rows, None] == real[None, ::2]).all(2)
        assert ((squared == 0) == same).all()


def test_too_few_images_and_nan_are_refused():
    with pytest.raises(ValueError, match="at least 20"):
        measures(gaussian(19), gaussian(50))
    with pytest.raises(ValueError, match="finite"):
        measures(gaussian(30), np.full((30, 4), np.nan))


def test_the_error_of_a_mean():
    assert mean(np.arange(4) < 3) == (0.75, pytest.approx(math.sqrt(0.1875 * 4 / 3 / 4)))
