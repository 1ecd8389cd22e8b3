"""What the families share: the image, the device, the context and its check, and how a drawing begins.

`ImageModel` is every model of images. `GenerativeModel` also draws: its `sample` and `complete` check the context, read
the keywords of `core.Draw`, switch gradients off and float32 products to full precision, and only then call the
family's `_sample` and `_complete`. So no family can forget the context, and all have the same signatures.

Sampling is completion of nothing: `_sample` completes images without a known pixel, unless a family has a shorter way.

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
    """A model of integer images (B, C, H, W). `context(spec=)` is an unfinished part, or None.

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
        """Of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; losses and likelihoods have it also under autocast."""
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
        """The context as the networks get it: its features (B, E, h, w) if the model has a context part, else itself.

        RequestError unless it is what the model is conditioned on, one for each image.
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
        """Keep x (B, C, H, W) where known (B, H, W) is True and draw the rest given it. `keywords` as of `sample`."""
        self.spec.check(x)
        draw = Draw.of(draw, **keywords)
        return self._complete(moved(x, self.device).long(), known, draw, self._condition(draw.context, len(x)))

    def _sample(self, n: int, draw: Draw, condition: Tensor | None) -> Tensor:
        """n images: the completion of nothing."""
        x = torch.zeros(n, *self.spec.shape, dtype=torch.long, device=self.device)
        known = torch.zeros(n, *self.spec.shape[1:], dtype=torch.bool)
        return self._complete(x, known, replace(draw, particles=1), condition).images

    @abstractmethod
    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """As `complete`, of integers x on the model's device; `known` is still where the caller has it."""


def to_cells(y: Tensor, spec: ImageSpec) -> Tensor:
    """Reals (B, D) -> integers (B, C, H, W). Level x has the cell [x, x + 1) / K; the outermost ones take the rest."""
    return (y * spec.levels).floor().clamp(0, spec.levels - 1).long().view(-1, *spec.shape)
