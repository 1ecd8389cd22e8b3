"""What an image is conditioned on, made from the image itself: its luminance, a small version, its left half.

Colouring (Guadarrama et al. 2017, arXiv:1705.07208), super-resolution (Dahl et al. 2017, arXiv:1702.00783) and
completion become p(x | context), whose likelihood is as exact as p(x). Ours is integer arithmetic throughout: the same
context on every device, and luminance is to the integer what Pillow's `convert("L")` gives for the same picture.

Each class says what it makes of an ImageSpec and of images. `whole` is the spec of the images of the data set:

    spec(whole)                  spec of what is modelled, with `.context`
    whole(spec)                  its inverse, for whoever has the model alone
    modelled(images)             the part of the whole images (N, C, H, W) that is modelled
    __call__(images, whole)      (what is modelled, its contexts uint8 (N, C', H', W') or None)
    pictures(x, context, whole)  (the contexts, the images x with them), both (N, C, H, W) in 0..255, to be looked at
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from genlab.core import ImageSpec, RequestError

UNKNOWN = 128  # the grey of what is not there


@runtime_checkable
class Context(Protocol):
    """`kind`: what the model must be conditioned on, "label" or "image". `name`: of the variant of the data."""

    kind: str
    name: str

    def spec(self, whole: ImageSpec) -> ImageSpec: ...
    def modelled(self, images: Tensor) -> Tensor: ...
    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class SecondImage(Context, Protocol):
    """A context that can be looked at."""

    def whole(self, spec: ImageSpec) -> ImageSpec: ...
    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]: ...


class Label:
    """The class label, which every batch has anyway."""

    kind, name = "label", "label"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """Unchanged."""
        if not whole.classes:
            raise RequestError("data/context=label needs images with labels, and this data set has none")
        return whole

    def modelled(self, images: Tensor) -> Tensor:
        """All of it."""
        return images

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """No second image."""
        return images, None


class Grey:
    """Colour from grey: the context is the luminance (ITU-R BT.601), rounded, (B, 1, H, W), 256 levels."""

    kind, name = "image", "grey"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """The whole image, given one channel."""
        if whole.channels != 3:
            raise RequestError(
                f"data/context=grey learns to colour, so it needs colour images: these have {whole.channels} "
                f"channel{'s' * (whole.channels > 1)}"
            )
        return replace(whole, context=ImageSpec(1, whole.height, whole.width))

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """The image without its context."""
        return replace(spec, context=None)

    def modelled(self, images: Tensor) -> Tensor:
        """All of it."""
        return images

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """Weights in 65536ths, as Pillow has them."""
        red, green, blue = to_bytes(images, whole.levels).int().unbind(1)
        luminance = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
        return images, luminance[:, None].to(torch.uint8)

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """Grey in three channels; the coloured images."""
        return context.expand(-1, whole.channels, -1, -1), to_bytes(x, whole.levels)


class LowRes:
    """Super-resolution: the context is the mean of every factor x factor block, rounded, (B, C, H/f, W/f), 256 levels
    whatever the levels of the image.
    """

    kind = "image"

    def __init__(self, factor: int = 4) -> None:
        if not isinstance(factor, int) or factor < 2:
            raise RequestError(f"data.context.factor={factor} is not possible; it is an integer, at least 2")
        self.factor, self.name = factor, f"lowres{factor}"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """The whole image, given a small one."""
        if whole.height % self.factor or whole.width % self.factor:
            raise RequestError(
                f"data/context=lowres makes blocks of {self.factor}x{self.factor} pixels, and images of "
                f"{whole.height}x{whole.width} do not divide into them: choose another data.context.factor"
            )
        small = ImageSpec(whole.channels, whole.height // self.factor, whole.width // self.factor)
        return replace(whole, context=small)

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """The image without its context."""
        return replace(spec, context=None)

    def modelled(self, images: Tensor) -> Tensor:
        """All of it."""
        return images

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """Sums of integers, divided and rounded (halves up) once."""
        f = self.factor
        sums = images.long().unflatten(-1, (-1, f)).sum(-1).unflatten(-2, (-1, f)).sum(-2)
        return images, _rounded(255 * sums, (whole.levels - 1) * f * f)

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """Every small pixel as its block; the images."""
        large = context.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return large, to_bytes(x, whole.levels)


class Half:
    """The right half, (B, C, H, W - W//2), is the image; the left half, (B, C, H, W//2), its context."""

    kind, name = "image", "half"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """The right half, given the left one."""
        if whole.width < 2:
            raise RequestError("data/context=half needs images at least 2 pixels wide, and these have 1")
        left = whole.width // 2
        return replace(whole, width=whole.width - left, context=replace(whole, width=left, classes=0))

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """Both halves side by side."""
        assert spec.context is not None
        return replace(spec, width=spec.width + spec.context.width, context=None)

    def modelled(self, images: Tensor) -> Tensor:
        """The right half."""
        return images[..., images.shape[-1] // 2 :]

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """Views of the two halves."""
        return self.modelled(images), images[..., : whole.width // 2]

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """The left half with nothing beside it; the two halves joined."""
        left, right = to_bytes(context, whole.levels), to_bytes(x, whole.levels)
        return torch.cat([left, torch.full_like(right, UNKNOWN)], -1), torch.cat([left, right], -1)


class HalfMean:
    """The mean of the right half, rounded to a level, is the image, (B, C, 1, 1); the left half its context."""

    kind, name = "image", "half_mean"

    def spec(self, whole: ImageSpec) -> ImageSpec:
        """One pixel, given the left half."""
        if whole.width % 2:
            raise RequestError(f"data/context=half_mean needs images of an even width, and these have {whole.width}")
        return replace(whole, height=1, width=1, context=replace(whole, width=whole.width // 2, classes=0))

    def whole(self, spec: ImageSpec) -> ImageSpec:
        """Both halves side by side."""
        assert spec.context is not None
        return replace(spec.context, width=2 * spec.context.width, classes=spec.classes)

    def modelled(self, images: Tensor) -> Tensor:
        """Sums of integers, divided and rounded (halves up) once."""
        right = images[..., images.shape[-1] // 2 :].long()
        return _rounded(right.sum((-2, -1), keepdim=True), right.shape[-2] * right.shape[-1])

    def __call__(self, images: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor | None]:
        """The mean, and a view of the left half."""
        return self.modelled(images), images[..., : whole.width // 2]

    def pictures(self, x: Tensor, context: Tensor, whole: ImageSpec) -> tuple[Tensor, Tensor]:
        """The left half with nothing beside it; with the mean as the right half."""
        left = to_bytes(context, whole.levels)
        right = to_bytes(x, whole.levels).expand_as(left)
        return torch.cat([left, torch.full_like(left, UNKNOWN)], -1), torch.cat([left, right], -1)


def to_bytes(x: Tensor, levels: int) -> Tensor:
    """Integers in 0..levels - 1 -> uint8 in 0..255, rounded; 8-bit images are unchanged."""
    return x.to(torch.uint8) if levels == 256 else _rounded(255 * x.long(), levels - 1)


def _rounded(a: Tensor, b: int) -> Tensor:
    """a / b to the nearest integer, halves up, without floats; uint8."""
    return ((2 * a + b) // (2 * b)).to(torch.uint8)
