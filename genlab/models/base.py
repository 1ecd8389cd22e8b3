"""The base classes of all families: scaling of images, the check of the context, and the start of every drawing.

`ImageModel` is every model of images. `GenerativeModel` also draws: its `sample` and `complete` check the context, read
the keywords of `core.Draw`, switch gradients off and float32 products to full precision, and only then call the
family's `_sample` and `_complete`. So no family can forget the context, and all have the same signatures.

By default `_sample` completes images without known pixels. Families with a faster algorithm override it.

B or n images, C channels, H x W pixels, K levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, ImageSpec
from genlab.models.conditioning import check_context
from genlab.system.device import moved, true_float32


class ImageModel(nn.Module):
    """A model of integer images (B, C, H, W). `context(spec=)`: a constructor of the network for the context, or None.

    `conditioning`: what an image is conditioned on, none | label | image. `signed`: the networks see images in [-1, 1],
    else in [0, 1].
    """

    conditioning = "none"
    signed = False

    def __init__(self, spec: ImageSpec, context: Callable[..., nn.Module] | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.context = None if context is None else context(spec=spec)
        if self.context is not None:
            self.conditioning = str(self.context.kind)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights. Losses and likelihoods have it also under autocast."""
        return next(self.parameters()).dtype

    def scaled(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> reals in [0, 1], or in [-1, 1] if `signed`."""
        self.spec.check(x)
        y, top = x.to(self.dtype), self.spec.levels - 1
        return y * (2 / top) - 1 if self.signed else y / top

    def quantised(self, y: Tensor) -> Tensor:
        """Inverse of `scaled`: reals (B, C, H, W) -> the nearest integers in 0..K-1."""
        top = self.spec.levels - 1
        y = (y.to(self.dtype) + 1) * (top / 2) if self.signed else y * top
        return y.round().clamp(0, top).long()

    def _condition(self, context: Tensor | None, batch: int) -> Tensor | None:
        """The input of the networks for a context: features (B, E, h, w), or the context itself without `self.context`.

        Raises RequestError unless the context is of the right kind, one for each image.
        """
        context = check_context(context, self.conditioning, batch)
        if context is None:
            return None
        context = moved(context, self.device)
        return context if self.context is None else self.context(context)


class GenerativeModel(ImageModel, ABC):
    """A model that draws images and completes them."""

    @torch.no_grad()
    @true_float32()
    def sample(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """n images (n, C, H, W), integers. `keywords` are those of `Draw.of`, for example seed=0."""
        draw = Draw.of(draw, **keywords)
        return self._sample(n, draw, self._condition(draw.context, n))

    @torch.no_grad()
    @true_float32()
    def complete(self, x: Tensor, known: Tensor, draw: Draw | None = None, **keywords: Any) -> Completion:
        """Keep x (B, C, H, W) where known (B, H, W) is True and draw the other values. `keywords` as in `sample`."""
        self.spec.check(x)
        draw = Draw.of(draw, **keywords)
        return self._complete(moved(x, self.device).long(), known, draw, self._condition(draw.context, len(x)))

    def _sample(self, n: int, draw: Draw, condition: Tensor | None) -> Tensor:
        """Draw n images, as a completion without known pixels."""
        x = torch.zeros(n, *self.spec.shape, dtype=torch.long, device=self.device)
        known = torch.zeros(n, *self.spec.shape[1:], dtype=torch.bool)
        return self._complete(x, known, replace(draw, particles=1), condition).images

    @abstractmethod
    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """As `complete`. The integers x are on the model's device; `known` is on the caller's device."""


def to_cells(y: Tensor, spec: ImageSpec) -> Tensor:
    """Reals (B, D) -> integers (B, C, H, W). Level x has the cell [x, x + 1) / K; the outermost ones take the tails."""
    return (y * spec.levels).floor().clamp(0, spec.levels - 1).long().view(-1, *spec.shape)
