"""Completion by weighted particles, where known pixels come after unknown ones (a particle filter, Gordon et al. 1993).

A known value that replaces a drawn one influences later values, but not earlier ones. So several copies of an image,
the particles, are generated side by side. At a known step each copy is weighted by the probability that it gave to the
known values. If few copies carry most of the weight, all copies are resampled by weight. At the end one copy is drawn.
The result tends to the exact conditional distribution as the number of particles grows.

Resampling is systematic: one uniform number for all copies of an image (Kitagawa 1996).

B images, P particles of each, T steps of c values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.core import from_steps
from genlab.models.ancestral import Generation, Known
from genlab.models.noise import uniform
from genlab.system.device import moved


def weighted(generation: Generation, known: Known) -> tuple[Tensor, Tensor]:
    """Run the particle filter.

    Returns the completed values (B, T, c), and the smallest effective number of particles of each image (B,), float64.
    """
    net, head, draw = generation.net, generation.head, generation.draw
    batch, particles, device = len(known.values), draw.particles, known.values.device
    out, mask = (tensor.repeat_interleave(particles, 0) for tensor in (known.values, known.mask))
    condition = None if generation.condition is None else generation.condition.repeat_interleave(particles, 0)
    state = net.start(len(out), device, (from_steps(out, generation.spec), known.rows), condition)
    log_w = torch.zeros(batch, particles, dtype=torch.double, device=device)
    smallest = torch.full((batch,), float(particles), dtype=torch.double, device=device)
    # Before its first unknown step all copies of an image are equal, so only later known steps change the weights.
    late = known.late.T
    counts = moved(late.repeat_interleave(particles, 1), device)
    previous = None
    noise_of_steps = generation.noise(len(out), known.rows, device)
    for t, noise in enumerate(noise_of_steps, known.rows * generation.row_steps):
        h, state = net.step(previous, state)
        pixels = generation.tempered(head(h))
        previous = out[:, t] = torch.where(mask[:, t], out[:, t], pixels.sample(noise))
        if late[t].any():
            log_w += torch.where(counts[t], pixels.log_prob(previous).double(), 0).view(batch, particles)
            effective = log_w.softmax(1).square().sum(1).reciprocal()
            smallest = torch.minimum(smallest, effective)
            degenerate = effective < particles / 2
            if degenerate.any():  # the host waits here, which costs less than copying the state at every step
                index = _resample(log_w, degenerate, draw.generator)
                out, previous = out[index], previous[index]
                state.reorder(index)
    chosen = _pick(log_w.softmax(1), 1, draw.generator)[:, 0]
    return out.view(batch, particles, *out.shape[1:])[torch.arange(batch, device=device), chosen], smallest


def _resample(log_w: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
    """Resample the particles of the images `which` (B,) and reset their weights (B, P). Returns indices (B P,)."""
    batch, particles = log_w.shape
    keep = torch.arange(particles, device=log_w.device).expand(batch, -1)
    chosen = torch.where(which[:, None], _pick(log_w.softmax(1), particles, generator), keep)
    log_w.masked_fill_(which[:, None], 0)
    return (chosen + torch.arange(batch, device=log_w.device)[:, None] * particles).flatten()


def _pick(weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n indices for each row of weights (B, P), by systematic resampling: (B, n)."""
    start = uniform(len(weights), 1, device=weights.device, generator=generator, dtype=weights.dtype)
    points = (start + torch.arange(n, device=weights.device)) / n
    cdf = weights.cumsum(1)
    return torch.searchsorted(cdf, points * cdf[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)
