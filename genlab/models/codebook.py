"""A codebook: vectors of real numbers become the nearest of K learnt ones (van den Oord et al. 2017, arXiv:1711.00937).

The choice has no gradient. The decoder's gradient is copied to the encoder (straight through, eq. 2). Two squared
distances, in units of nats, move the chosen vector to the encoder's output, and the output to the vector (eq. 3).

B images, D numbers of a vector, h x w places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """K vectors of D numbers, `vectors` (K, D)."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(codes, width))

    def nearest(self, e: Tensor) -> Tensor:
        """Grids (B, D, h, w) -> the numbers of the nearest vectors (B, 1, h, w)."""
        places = e.detach().permute(0, 2, 3, 1)
        distance = self.vectors.detach().square().sum(1) - 2 * places @ self.vectors.detach().T
        return distance.argmin(-1)[:, None]

    def look_up(self, codes: Tensor) -> Tensor:
        """Numbers of vectors (B, 1, h, w) -> grids (B, D, h, w)."""
        return F.embedding(codes[:, 0], self.vectors).permute(0, 3, 1, 2)

    def straight_through(self, e: Tensor, codes: Tensor, commitment: float) -> tuple[Tensor, Tensor]:
        """(grids whose gradient goes to e, the two distances (B,) with the weight of the second)."""
        z = self.look_up(codes)
        moves = (e.detach() - z).square().flatten(1).sum(1)
        commits = (e - z.detach()).square().flatten(1).sum(1)
        return e + (z - e).detach(), moves + commitment * commits

    @torch.no_grad()
    def start_from(self, e: Tensor, generator: torch.Generator) -> None:
        """Take K places of the grids e (N, D, h, w) as vectors, so that none begins far from all of them."""
        places = e.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randperm(len(places), generator=generator)[: len(self.vectors)]
        chosen = chosen.repeat(-(-len(self.vectors) // len(chosen)))[: len(self.vectors)]
        spread = places.std().clamp_min(1e-6) * 1e-3
        noise = torch.randn(self.vectors.shape, generator=generator).to(places)
        self.vectors.copy_(places[chosen] + spread * noise)
