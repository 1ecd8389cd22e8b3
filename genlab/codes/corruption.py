"""Corruptions, which a denoising autoencoder learns to undo (Vincent et al. 2010, JMLR 11, sec. 3.3).

A corruption takes images y (B, C, H, W), scaled to [0, 1]. It returns the corrupted images and a mask of the corrupted
values, bool (B, C, H, W). An emphasised loss (sec. 3.4) gives these values another weight. `everywhere` is True for a
corruption of all values, for which such a loss makes no sense.

Noise comes from torch's global generator, which a training step seeds, or from a given generator and on its device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.system.device import moved

CONFIGURABLE = {"corruption": ("Gaussian", "Masking", "SaltPepper")}


class Gaussian(nn.Module):
    """Adds Gaussian noise of standard deviation `sigma`, in units of the range of an image, to every value."""

    everywhere = True

    def __init__(self, *, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise RequestError(f"gaussian corruption needs sigma > 0, got {sigma}")
        self.sigma = sigma

    def forward(self, y: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (corrupted images, mask of the corrupted values)."""
        return y + self.sigma * _noise(torch.randn, y, generator), torch.ones_like(y, dtype=torch.bool)


class _Partial(nn.Module):
    """Corrupts every value with probability `share`."""

    everywhere = False

    def __init__(self, *, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise RequestError(f"corruption needs 0 < share < 1, got {share}")
        self.share = share


class Masking(_Partial):
    """Corrupted values become 0."""

    def forward(self, y: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (corrupted images, mask of the corrupted values)."""
        corrupted = _noise(torch.rand, y, generator) < self.share
        return y.masked_fill(corrupted, 0), corrupted


class SaltPepper(_Partial):
    """Corrupted values become 0 or 1, each with probability 1/2."""

    def forward(self, y: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (corrupted images, mask of the corrupted values)."""
        u = _noise(torch.rand, y, generator)
        return torch.where(u < self.share, (u < self.share / 2).to(y.dtype), y), u < self.share


def _noise(kind: Callable[..., Tensor], y: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers of torch.rand or torch.randn (`kind`) in the shape and on the device of y."""
    device = y.device if generator is None else generator.device
    return moved(kind(y.shape, dtype=y.dtype, device=device, generator=generator), y.device)
