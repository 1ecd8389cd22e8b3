"""Latents whose images agree with known values: a Metropolis-adjusted Langevin walk from the prior, slowly tightened.

    target_t(z) = N(z; 0, T^2 I) exp(-|miss(z)|^2 / (2 sigma_t^2)),    sigma_t from loose to tight

Roberts & Tweedie 1996; latents of a flow as in Asim et al. 2020 (arXiv:1905.11672), who take the most probable one
where ours walks. What is drawn follows the posterior only as the walk gets longer and sigma_t smaller: completions by
it are approximate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.system.device import moved

LOOSE, TIGHT = 3.0, 0.05
ACCEPTED = 0.6  # of the proposals, kept up by the step size
RATE = 0.05


def walk(
    z: Tensor,
    miss: Callable[[Tensor], Tensor],
    *,
    steps: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """From draws z (B, D) of the prior to latents whose `miss` (B, …), what is left of the known values, is small.

    Every image has a step size of its own. Noise is drawn where the generator lives.
    """

    def energies(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prior and misfit energy, each (B,), and their gradients."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            misfit = miss(z).square().flatten(1).sum(1) / 2
            slope = torch.autograd.grad(misfit.sum(), z)[0]
        return z.detach().square().sum(1) / 2 / temperature**2, misfit.detach(), z.detach() / temperature**2, slope

    home = z.device if generator is None else generator.device
    size = torch.full((len(z), 1), 0.05, dtype=z.dtype, device=z.device)
    here = energies(z)
    for step in range(steps):
        weight = (LOOSE * (TIGHT / LOOSE) ** (step / max(1, steps - 1))) ** -2
        noise = torch.randn(z.shape, generator=generator, device=home, dtype=z.dtype)
        noise = moved(noise, z.device)
        drift = here[2] + weight * here[3]
        other = z - size.square() / 2 * drift + size * noise
        there = energies(other)
        back = (z - other + size.square() / 2 * (there[2] + weight * there[3])) / size
        gain = here[0] - there[0] + weight * (here[1] - there[1])
        gain = gain + (noise.square().sum(1) - back.square().sum(1)) / 2
        uniform = moved(torch.rand(len(z), generator=generator, device=home, dtype=z.dtype), z.device)
        accept = uniform.log() < gain  # false where something is not finite
        z = torch.where(accept[:, None], other, z)
        here = tuple(  # type: ignore[assignment]
            torch.where(accept.view(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(there, here, strict=True)
        )
        chance = gain.nan_to_num(-torch.inf).clamp(max=0).exp()[:, None]
        size = size * (RATE * (chance - ACCEPTED)).exp()
    return z
