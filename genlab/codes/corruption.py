"""What a denoising autoencoder has to undo (Vincent et al. 2010, JMLR 11, sec. 3.3).

Images come scaled, y (B, C, H, W) in [0, 1], and go out corrupted with the values that were touched, bool of that
shape: an emphasised loss (sec. 3.4) weighs those differently, unless they are `everywhere`. Noise is torch's, so the
training step's seed decides; or a generator's, on whose device it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.system.device import moved


class Gaussian(nn.Module):
    """y + sigma * noise; every value is touched. `sigma` in units of the range of an image."""

    everywhere = True

    def __init__(self, *, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise RequestError(f"gaussian corruption needs sigma > 0, got {sigma}")
        self.sigma = sigma

    def forward(self, y: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> corrupted, touched."""
        return y + self.sigma * _noise(torch.randn, y, generator), torch.ones_like(y, dtype=torch.bool)


class _Some(nn.Module):
    """Touches every value with probability `share`."""

    everywhere = False

    def __init__(self, *, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise RequestError(f"corruption needs 0 < share < 1, got {share}")
        self.share = share


class Masking(_Some):
    """Touched values become 0."""

    def forward(self, y: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> corrupted, touched."""
        touched = _noise(torch.rand, y, generator) < self.share
        return y.masked_fill(touched, 0), touched


class SaltPepper(_Some):
    """Touched values become 0 or 1 by a fair coin."""

    def forward(self, y: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> corrupted, touched."""
        u = _noise(torch.rand, y, generator)
        return torch.where(u < self.share, (u < self.share / 2).to(y.dtype), y), u < self.share


def _noise(kind: Callable[..., Tensor], y: Tensor, generator: torch.Generator | None) -> Tensor:
    """torch.rand or torch.randn numbers, one for each value of y."""
    device = y.device if generator is None else generator.device
    return moved(kind(y.shape, dtype=y.dtype, device=device, generator=generator), y.device)
