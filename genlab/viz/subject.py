"""What the pictures of `genlab show` are made of: a model, a split of its data, and ways to write a picture.

Shapes: N images of the split (N, C, H, W), codes (N, L) of L units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from genlab.core import ImageSpec, RequestError
from genlab.data.batches import Batch, context_of
from genlab.system.progress import WithProgress, without_progress
from genlab.viz import plots, representations

MAX_ROWS = 12  # units in a picture that has one row for each
Save = Callable[[Path], None]  # writes a picture to a file
Picture = Callable[["Subject"], Save]  # raises RequestError if the model has no such picture


@dataclass
class Subject:
    """A model and the split of its data that its pictures are made with.

    `metrics`: the metrics.csv of its run. `units`: how many units to show; None: `MAX_TILES` or `MAX_ROWS`.
    """

    model: Any
    data: Any
    split: str
    metrics: Path
    units: int | None = None
    with_progress: WithProgress = without_progress

    @property
    def images(self) -> Tensor:
        """All images of the split (N, C, H, W)."""
        return self._split.images

    @property
    def context(self) -> Tensor | None:
        """The context of each image (N, ...); None if the model is unconditional."""
        return context_of(self.model, self._split)

    @property
    def first_context(self) -> Tensor | None:
        """The context of the first image (1, ...), under which codes that belong to no image are decoded."""
        return None if self.context is None else self.context[:1]

    @cached_property
    def _split(self) -> Batch:
        return self.data.first(self.split, len(self.data.split(self.split).labels))

    @cached_property
    def codes(self) -> Tensor:
        """Codes of all images (N, L)."""
        x, context = self.images, self.context
        return self.with_progress(
            "encoding", len(x), lambda advance: representations.encode_all(self.model, x, advance, context)
        )

    @property
    def most_varying_units(self) -> Tensor:
        """The units that get a row each, (U,), the one with the largest variance first."""
        units = representations.most_varying(self.codes, self.units or MAX_ROWS)
        if not len(units):
            raise RequestError(f"no unit of the code changes over the {self.split} images: there is nothing to show")
        return units


def labelled(sheet: Tensor, rows: list[str], columns: list[str], *, below: str) -> Save:
    """A grid of 8-bit images (R, K, C, H, W) with names for its rows and columns."""
    return figure(plots.labelled_grid(sheet.flatten(0, 1), spec_8_bit(sheet), rows, columns, below=below))


def figure(drawn: Any) -> Save:
    """A picture that is a figure of matplotlib."""
    return lambda path: plots.save_figure(path, drawn)


def to_8_bit(images: Tensor) -> Tensor:
    """Images in [0, 1] -> integers in 0..255."""
    return (images * 255).round().clamp(0, 255).long()


def spec_8_bit(sheet: Tensor) -> ImageSpec:
    """The spec of 8-bit images of this shape (..., C, H, W)."""
    return ImageSpec(*sheet.shape[-3:])
