"""Toy densities: one or two integer coordinates with a distribution that is known exactly.

A point is an image of 1 x 1 or 1 x 2 pixels, so every family of genlab trains on it in seconds, and its distribution
can be compared with the true one on the whole grid (`genlab show what=density`). A coordinate has K levels. A shape is
a density on the unit interval or square. It is evaluated at the middle of every cell and normalised to sum to 1, and
the points are drawn from this table.

Shapes: the table (K,) or (K, K); images (N, 1, 1, D) for D coordinates, whose order is that of the table's axes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genlab.core import RequestError, nearest
from genlab.data.module import ImageData
from genlab.data.source import Split, Splits, unlabelled

CONFIGURABLE = {"data": ("toy_data",)}

COUNTS = {"train": 50_000, "valid": 5_000, "test": 10_000}  # points
MOST_LEVELS = 256


class Toy:
    """Points drawn from a known table of probabilities. Raises RequestError for an unknown shape or size."""

    def __init__(self, dims: int, shape: str, levels: int) -> None:
        if shape not in SHAPES[dims]:
            raise RequestError(f"data.shape={shape} is not known: {nearest(str(shape), SHAPES[dims])}")
        if not isinstance(levels, int) or isinstance(levels, bool) or not 2 <= levels <= MOST_LEVELS:
            raise RequestError(f"data.levels={levels} is not possible: a coordinate has 2 to {MOST_LEVELS} levels")
        self.dims, self.levels, self.name = dims, levels, f"toy{dims}d_{shape}_{levels}levels"
        middles = (np.arange(levels) + 0.5) / levels
        cells = np.stack(np.meshgrid(*[middles] * dims, indexing="ij"), -1)  # (K, 1) or (K, K, 2)
        density = SHAPES[dims][shape](cells)
        self.table = density / density.sum()

    def load(self, root: Path | None) -> Splits:
        """Draw the points. `root` is not used."""
        train, valid, test = (self._draw(count, seed) for seed, count in enumerate(COUNTS.values()))
        return Splits(train, test, valid=valid, levels=self.levels)

    def _draw(self, count: int, seed: int) -> Split:
        """`count` points, by the inverse of the cumulative table."""
        u = np.random.RandomState(seed).random_sample(count)
        cumulative = self.table.flatten().cumsum()
        cells = np.minimum(np.searchsorted(cumulative, u, side="right"), cumulative.size - 1)
        points = np.stack(np.unravel_index(cells, self.table.shape), -1)
        return unlabelled(torch.from_numpy(points.astype(np.uint8)).view(count, 1, 1, self.dims))


def toy_data(dims: int, shape: str, levels: int, **options: Any) -> ImageData:
    """Make the data module of `data=toy1d` and `data=toy2d`. `options` are those of ImageData."""
    return ImageData(Toy(dims, shape, levels), validation=COUNTS["valid"], **options)


def bumps(points: np.ndarray, centres: np.ndarray, sd: float | np.ndarray) -> np.ndarray:
    """The mean of isotropic Gaussian densities: points (..., D), centres (M, D), deviations (M,) or one -> (...)."""
    sd = np.broadcast_to(sd, len(centres))
    squares = ((points[..., None, :] - centres) ** 2).sum(-1)
    return (np.exp(-squares / (2 * sd**2)) / sd ** points.shape[-1]).mean(-1)


def arc(middle: tuple[float, float], radius: float, start: float, end: float, count: int = 60) -> np.ndarray:
    """Points on a part of a circle (count, 2), from the angle `start` to `end` in turns."""
    angles = 2 * np.pi * (start + (end - start) * (np.arange(count) + 0.5) / count)
    return np.stack([middle[0] + radius * np.cos(angles), middle[1] + radius * np.sin(angles)], -1)


def three_gaussians(points: np.ndarray) -> np.ndarray:
    """One dimension: a wide, a narrow and a middling component."""
    return bumps(points, np.array([[0.25], [0.55], [0.8]]), np.array([0.08, 0.02, 0.05]))


def histogram(points: np.ndarray) -> np.ndarray:
    """Equal cells, eight a coordinate, with random heights."""
    heights = np.random.RandomState(7).random_sample((8,) * points.shape[-1]) ** 2
    return heights[tuple(np.moveaxis((points * 8).astype(int), -1, 0))]


def moons(points: np.ndarray) -> np.ndarray:
    """Two half circles that hold each other."""
    centres = np.concatenate([arc((0.37, 0.42), 0.25, 0.0, 0.5), arc((0.63, 0.58), 0.25, 0.5, 1.0)])
    return bumps(points, centres, 0.03)


def smiley(points: np.ndarray) -> np.ndarray:
    """A face: an outline, two eyes and a mouth."""
    eyes = np.repeat(np.array([[0.37, 0.62], [0.63, 0.62]]), 10, 0)
    return bumps(
        points, np.concatenate([arc((0.5, 0.5), 0.4, 0.0, 1.0, 90), eyes, arc((0.5, 0.47), 0.2, 0.55, 0.95, 30)]), 0.025
    )


def checkerboard(points: np.ndarray) -> np.ndarray:
    """Every second of 4 x 4 squares."""
    return ((points * 4).astype(int).sum(-1) % 2).astype(float)


def rings(points: np.ndarray) -> np.ndarray:
    """Two circles with the same middle."""
    return bumps(points, np.concatenate([arc((0.5, 0.5), 0.4, 0.0, 1.0), arc((0.5, 0.5), 0.2, 0.0, 1.0)]), 0.02)


def eight_gaussians(points: np.ndarray) -> np.ndarray:
    """Eight components on a circle."""
    return bumps(points, arc((0.5, 0.5), 0.36, 0.0, 1.0, 8), 0.035)


def clusters(points: np.ndarray) -> np.ndarray:
    """Three clusters of the second coordinate for every first one: their mean is an answer that never occurs."""
    x, y = points[..., 0], points[..., 1]
    middles = np.stack([0.5 + 0.18 * np.sin(2 * np.pi * x) + offset for offset in (-0.28, 0.0, 0.28)])
    return np.exp(-((y - middles) ** 2) / (2 * 0.03**2)).sum(0)


Shape = Callable[[np.ndarray], np.ndarray]  # points (..., D) in the unit square -> density (...), not normalised
SHAPES: dict[int, dict[str, Shape]] = {
    1: {"gaussians": three_gaussians, "histogram": histogram},
    2: {
        "moons": moons, "smiley": smiley, "checkerboard": checkerboard, "rings": rings, "gaussians": eight_gaussians,
        "histogram": histogram, "clusters": clusters,
    },
}  # fmt: skip
