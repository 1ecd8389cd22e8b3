"""Contexts, on which an image is conditioned. They are computed from the image itself.

A context is the luminance of the image, a small version of it, or its left half. Then colouring (Guadarrama et al.
2017, arXiv:1705.07208), super-resolution (Dahl et al. 2017, arXiv:1702.00783) and completion are models of
p(x | context), and their likelihood is as exact as that of p(x). We compute with integers only, so a context is the
same on every device. Luminance is equal to what Pillow's `convert("L")` gives for the same picture.

A context splits a whole image of the data set into the part x that is modelled and the context. Every class has these
methods; `whole` is the spec of a whole image:

    spec(whole)                  the spec of x, with `.context`
    whole(spec)                  the inverse of `spec`, for callers that only have the model
    modelled(images)             whole images (N, C, H, W) -> x
    __call__(images, whole)      whole images (N, C, H, W) -> x and its contexts, uint8 (N, C', H', W') or None
    pictures(x, context, whole)  two pictures for the user, the context alone and with x, both (N, C, H, W) in 0..255
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from genlab.core import ImageSpec, RequestError

CONFIGURABLE = {"context": ("Grey", "Half", "HalfMean", "Label", "LowRes")}

UNKNOWN = 128  # the grey of missing pixels in a picture


@runtime_checkable
class Context(Protocol):
    """The interface of a context.

    `kind`: "label" or "image", the conditioning that a model needs for it. `name`: part of the name of the data set.
    """

    kind: str
    name: str

    def spec(self, whole: ImageSpec) -> ImageSpec: ...
    def modelled(self, images: Tensor) -> Tensor: ...
    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class SecondImage(Context, Protocol):
    """A context that is an image."""

    def whole(self, spec: ImageSpec) -> ImageSpec: ...
    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]: ...


class Label:
    """The class label, which every batch contains anyway."""

    kind, name = "label", "label"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """`whole` unchanged. Raises RequestError if the data set has no labels."""
        if not whole.classes:
            raise RequestError("data/context=label needs images with labels, and this data set has none")
        return whole

    def modelled(self, images: Tensor) -> Tensor:
        """The images unchanged."""
        return images

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """The images unchanged, and None: there is no second image."""
        return images, None


class Grey:
    """Colouring: the context is the luminance (ITU-R BT.601), rounded, (B, 1, H, W) in 0..255."""

    kind, name = "image", "grey"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """The whole image, with a context of one channel. Raises RequestError unless images have three channels."""
        if whole.channels != 3:
            raise RequestError(
                f"data/context=grey learns to colour, so it needs colour images: these have {whole.channels} "
                f"channel{'s' * (whole.channels > 1)}"
            )
        return replace(whole, context=ImageSpec(1, whole.height, whole.width))

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """`spec` without its context."""
        return replace(spec, context=None)

    def modelled(self, images: Tensor) -> Tensor:
        """The images unchanged."""
        return images

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """The images, and their luminance with Pillow's weights, in 65536ths."""
        red, green, blue = to_bytes(images, whole.levels).int().unbind(1)
        luminance = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
        return images, luminance[:, None].to(torch.uint8)

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """The luminance in three channels; the colour images."""
        return context.expand(-1, whole.channels, -1, -1), to_bytes(x, whole.levels)


class LowRes:
    """Super-resolution: the context is the mean of every block of f x f pixels, f = `factor`, (B, C, H/f, W/f).

    The means are rounded to 0..255, also if the image has fewer levels.
    """

    kind = "image"

    def __init__(self, factor: int = 4) -> None:
        if not isinstance(factor, int) or factor < 2:
            raise RequestError(f"data.context.factor={factor} is not possible; it is an integer, at least 2")
        self.factor, self.name = factor, f"lowres{factor}"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """The whole image, with a small one as context. Raises RequestError if the blocks do not fit."""
        if whole.height % self.factor or whole.width % self.factor:
            raise RequestError(
                f"data/context=lowres makes blocks of {self.factor}x{self.factor} pixels, and images of "
                f"{whole.height}x{whole.width} do not divide into them: choose another data.context.factor"
            )
        small = ImageSpec(whole.channels, whole.height // self.factor, whole.width // self.factor)
        return replace(whole, context=small)

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """`spec` without its context."""
        return replace(spec, context=None)

    def modelled(self, images: Tensor) -> Tensor:
        """The images unchanged."""
        return images

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """The images, and the means of their blocks: integer sums, divided and rounded (halves up) once."""
        f = self.factor
        sums = images.long().unflatten(-1, (-1, f)).sum(-1).unflatten(-2, (-1, f)).sum(-2)
        return images, _rounded_quotient(255 * sums, (whole.levels - 1) * f * f)

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """The small image, every pixel enlarged to its block; the images."""
        large = context.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return large, to_bytes(x, whole.levels)


class Half:
    """Completion: the right half (B, C, H, W - W//2) is modelled, and the left half (B, C, H, W//2) is the context."""

    kind, name = "image", "half"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """The right half, with the left half as context. Raises RequestError for images one pixel wide."""
        if whole.width < 2:
            raise RequestError("data/context=half needs images at least 2 pixels wide, and these have 1")
        left = whole.width // 2
        return replace(whole, width=whole.width - left, context=replace(whole, width=left, classes=0))

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """The spec of both halves side by side."""
        assert spec.context is not None
        return replace(spec, width=spec.width + spec.context.width, context=None)

    def modelled(self, images: Tensor) -> Tensor:
        """The right half."""
        return images[..., images.shape[-1] // 2 :]

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """The right half and the left half, as views."""
        return self.modelled(images), images[..., : whole.width // 2]

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """The left half beside grey; the two halves side by side."""
        left, right = to_bytes(context, whole.levels), to_bytes(x, whole.levels)
        return torch.cat([left, torch.full_like(right, UNKNOWN)], -1), torch.cat([left, right], -1)


class HalfMean:
    """Regression: the mean of the right half, rounded to a level, (B, C, 1, 1), given the left half (B, C, H, W//2)."""

    kind, name = "image", "half_mean"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """One pixel, with the left half as context. Raises RequestError for images of an odd width."""
        if whole.width % 2:
            raise RequestError(f"data/context=half_mean needs images of an even width, and these have {whole.width}")
        return replace(whole, height=1, width=1, context=replace(whole, width=whole.width // 2, classes=0))

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """The spec of both halves side by side."""
        assert spec.context is not None
        return replace(spec.context, width=2 * spec.context.width, classes=spec.classes)

    def modelled(self, images: Tensor) -> Tensor:
        """The means of the right halves: integer sums, divided and rounded (halves up) once."""
        right = images[..., images.shape[-1] // 2 :].long()
        return _rounded_quotient(right.sum((-2, -1), keepdim=True), right.shape[-2] * right.shape[-1])

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """The mean of the right half, and a view of the left half."""
        return self.modelled(images), images[..., : whole.width // 2]

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """The left half beside grey; the left half beside the mean of the right half."""
        left = to_bytes(context, whole.levels)
        right = to_bytes(x, whole.levels).expand_as(left)
        return torch.cat([left, torch.full_like(left, UNKNOWN)], -1), torch.cat([left, right], -1)


def to_bytes(x: Tensor, levels: int) -> Tensor:
    """Integers in 0..levels - 1 -> uint8 in 0..255, rounded. Images of 256 levels are unchanged."""
    return x.to(torch.uint8) if levels == 256 else _rounded_quotient(255 * x.long(), levels - 1)


def _rounded_quotient(a: Tensor, b: int) -> Tensor:
    """a / b rounded to the nearest integer, halves up, as uint8. It is computed without floats."""
    return ((2 * a + b) // (2 * b)).to(torch.uint8)
