"""Langevin dynamics in latent space, with Metropolis corrections: draws latents whose images agree with known values.

    target_t(z) = N(z; 0, T I) exp(-|misfit(z)|^2 / (2 sigma_t^2))

T is the temperature, and sigma_t decreases from LOOSE to TIGHT.

MALA: Roberts & Tweedie 1996, Bernoulli 2. Asim et al. 2020 (arXiv:1905.11672) minimise the same energy over the latents
of a flow; ours draws from it instead. The draws follow the posterior only in the limit of many steps and a small
sigma_t, so completions by it are approximate.

B latents of D numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.models.noise import normal, uniform

LOOSE, TIGHT = 3.0, 0.05  # sigma_t of the first and of the last step, in the units of the misfit
ACCEPTED = 0.6  # share of accepted proposals that the step sizes are adapted to
RATE = 0.05  # of that adaptation
STEP_SIZE = 0.05  # at the start


def langevin_dynamics(
    z: Tensor,
    misfit: Callable[[Tensor], Tensor],
    *,
    steps: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws z (B, D) of the prior -> latents (B, D) with a small misfit, after `steps` steps.

    `misfit` maps latents to the distances (B, …) of their images from the known values. Every latent has its
    own step size, adapted to its acceptance rate.
    """

    def energies(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Energy of the prior and of the misfit, each (B,), and their gradients (B, D)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            misfit_energy = misfit(z).square().flatten(1).sum(1) / 2
            slope = torch.autograd.grad(misfit_energy.sum(), z)[0]
        z = z.detach()
        return z.square().sum(1) / 2 / temperature, misfit_energy.detach(), z / temperature, slope

    size = torch.full((len(z), 1), STEP_SIZE, dtype=z.dtype, device=z.device)
    current = energies(z)
    for step in range(steps):
        weight = (LOOSE * (TIGHT / LOOSE) ** (step / max(1, steps - 1))) ** -2
        noise = normal(*z.shape, device=z.device, generator=generator, dtype=z.dtype)
        drift = current[2] + weight * current[3]
        proposal = z - size.square() / 2 * drift + size * noise
        proposed = energies(proposal)
        back = (z - proposal + size.square() / 2 * (proposed[2] + weight * proposed[3])) / size
        gain = current[0] - proposed[0] + weight * (current[1] - proposed[1])
        gain = gain + (noise.square().sum(1) - back.square().sum(1)) / 2
        number = uniform(len(z), device=z.device, generator=generator, dtype=z.dtype)
        accept = number.log() < gain  # False if something is not finite
        z = torch.where(accept[:, None], proposal, z)
        current = tuple(  # type: ignore[assignment]
            torch.where(accept.view(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(proposed, current, strict=True)
        )
        chance = gain.nan_to_num(-torch.inf).clamp(max=0).exp()[:, None]
        size = size * (RATE * (chance - ACCEPTED)).exp()
    return z
