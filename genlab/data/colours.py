"""Random pairs of different colours, of 2 bits a channel, for generated images (`shapes.py`, `mnist_colour.py`)."""

from __future__ import annotations

import numpy as np

LEVELS = 4  # of a channel
COLOURS = LEVELS**3


def two_colours(random: np.random.RandomState, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The colours of `count` grounds and of what lies on them, never the same: both (count, 3, 1, 1), uint8."""
    ground = random.randint(COLOURS, size=count)
    return _channels(ground), _channels((ground + random.randint(1, COLOURS, size=count)) % COLOURS)


def _channels(colours: np.ndarray) -> np.ndarray:
    """Numbers of colours 0..63 (N,) -> their channels (N, 3, 1, 1)."""
    digits = [colours // LEVELS**2, colours // LEVELS % LEVELS, colours % LEVELS]
    return np.stack(digits, 1)[..., None, None].astype(np.uint8)
