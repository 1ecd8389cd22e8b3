"""Nearest neighbours of images among training images, or among themselves: is an image a copy?

A distance alone does not answer that. It is compared with the distances of held-out images, which cannot be copies: the
share of held-out images that lie nearer to a training image than this one. Near 0 means suspiciously near.

Distances are Euclidean: in pixels (values scaled to [0, 1]), or between features that are standardised with the
statistics of the training images. The search is exhaustive (scikit-learn's brute force).

M queries, N candidates, D numbers for each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from genlab.core import ImageSpec


class Neighbours(NamedTuple):
    """The k nearest candidates of M queries, nearest first: distances and numbers, (M, k) each."""

    distances: np.ndarray
    numbers: np.ndarray


def nearest(queries: np.ndarray, candidates: np.ndarray, k: int) -> Neighbours:
    """Queries (M, D), candidates (N, D) -> their k nearest candidates."""
    search = NearestNeighbors(n_neighbors=min(k, len(candidates)), algorithm="brute").fit(candidates)
    return Neighbours(*search.kneighbors(queries))


def nearest_others(points: np.ndarray, k: int) -> Neighbours:
    """Points (N, D) -> the k nearest other points of each."""
    search = NearestNeighbors(n_neighbors=min(k, len(points) - 1), algorithm="brute").fit(points)
    return Neighbours(*search.kneighbors())


def share_nearer(distances: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Distances (M,) of queries and of held-out images (R,) -> the share of held-out images that are nearer, (M,)."""
    return np.searchsorted(np.sort(held_out), distances, side="left") / len(held_out)


def pixels(x: Tensor, spec: ImageSpec) -> np.ndarray:
    """Integers (N, C, H, W) -> (N, D) float32 in [0, 1]."""
    return x.flatten(1).numpy().astype(np.float32) / (spec.levels - 1)


def standardised(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Features (…, D) of several sets, with the mean and standard deviation of the training images removed."""
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 0, std, 1)
    return [(each - mean) / std for each in (train, *others)]
