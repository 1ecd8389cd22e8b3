"""Images and points that illustrate a model's code or latent space, computed with `encode` and `decode` only.

- Atom of a unit: what the unit adds to the decoded image when it goes from 0 to 1 while all other units are 0. For a
  linear decoder this is the unit's column of the weight matrix.
- Most activating images of a unit: the images of a split for which the unit is largest.
- Traversal: decoded images while one unit of a code takes a range of values.
- Interpolation between two draws of a prior, whose noise of N(0, I) is a and b: a cos t + b sin t for t from 0 to pi/2,
  a great circle. Every point of it is noise of N(0, I), so what it becomes is a draw of the prior. (The slerp of White
  2016, arXiv:1609.04468, differs slightly.)
- Plane: two numbers for each image. They are the code itself if it has two units, otherwise its first two principal
  components.

N images (N, C, H, W) of integers, L units, codes h (N, L). Contexts have one entry for each image: (N, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from genlab.core import Coder, Latent, Pushforward, RequestError, RunError

BATCH = 256  # images or codes that the model processes at once


@runtime_checkable
class Shaped(Protocol):
    """A model whose latents z are an invertible function of noise of N(0, I). Other models have the noise as z."""

    def noise_of(self, z: Tensor) -> Tensor:
        """z (B, L) -> noise (B, L)."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """Noise (B, L) -> z (B, L)."""


def encode_all(
    coder: Coder, x: Tensor, advance: Callable[[int], object] = lambda done: None, context: Tensor | None = None
) -> Tensor:
    """Codes of images x (N, C, H, W): (N, L), float32 on the CPU. `advance(n)` is called after every n images.

    Raises RunError if a code is not finite.
    """
    codes = []
    for part, part_context in _batches(x, context, _device_of(coder)):
        codes.append(coder.encode(part, context=part_context).float().cpu())
        if not codes[-1].isfinite().all():
            raise RunError("the codes of some images are not finite numbers: there is nothing to show of them")
        advance(len(part))
    return torch.cat(codes)


def decode_all(coder: Coder, h: Tensor, context: Tensor | None = None) -> Tensor:
    """Expected images of codes h (N, L): (N, C, H, W) in [0, 1], float32 on the CPU.

    `context` has one entry for each code (N, ...), or a single one (1, ...) for all codes.
    """
    parameter = next(coder.parameters())  # type: ignore[attr-defined]
    if context is not None and len(context) == 1:
        context = context.expand(len(h), *context.shape[1:])
    batches = _batches(h, context, parameter.device)
    return torch.cat([coder.decode(part.to(parameter), part_context).float().cpu() for part, part_context in batches])


def atoms(coder: Coder, units: Tensor, context: Tensor | None = None) -> Tensor:
    """What each of the units (U,) adds to a decoded image when it goes from 0 to 1: (U, C, H, W) in [-1, 1].

    `context`: a single context (1, ...) under which all units are decoded.
    """
    one_hot = torch.zeros(len(units), coder.latent_dim)
    one_hot[torch.arange(len(units)), units] = 1
    return decode_all(coder, one_hot, context) - decode_all(coder, torch.zeros(1, coder.latent_dim), context)


def most_varying(h: Tensor, count: int) -> Tensor:
    """The `count` units with the largest variance over the codes h (N, L), largest first: (U,), U <= count.

    Units that never change are left out.
    """
    variance = h.double().var(0, correction=0)
    order = variance.argsort(descending=True, stable=True)
    return order[variance[order] > 0][:count]


def most_activating(h: Tensor, units: Tensor, count: int = 9) -> Tensor:
    """Indices (U, min(count, N)) of the codes h (N, L) in which each of the units (U,) is largest, largest first."""
    return h[:, units].topk(min(count, len(h)), 0).indices.T


def traversal(coder: Coder, h: Tensor, unit: int, values: Tensor, context: Tensor | None = None) -> Tensor:
    """Expected images (V, C, H, W) in [0, 1] of a code h (L,) in which `unit` takes each of the values (V,)."""
    varied = h.repeat(len(values), 1)
    varied[:, unit] = values.to(h)
    return decode_all(coder, varied, context)


def from_noise(model: object, noise: Tensor) -> Tensor:
    """Noise of N(0, I) (N, L) -> draws of the model's prior (N, L)."""
    return model.from_noise(noise) if isinstance(model, Shaped) else noise


def prior_interpolation(model: Pushforward, a: Tensor, b: Tensor, steps: int, labels: Tensor | None = None) -> Tensor:
    """Images (N * steps, C, H, W) in [0, 1] between the draws a (N, L) and b (N, L) of the prior, see above.

    `labels` (N,): the class of each pair, for a class-conditional model.
    """
    if isinstance(model, Shaped):
        a, b = model.noise_of(a), model.noise_of(b)
    angle = torch.linspace(0, math.pi / 2, steps).to(a)[None, :, None]
    z = from_noise(model, (a[:, None] * angle.cos() + b[:, None] * angle.sin()).flatten(0, 1))
    context = None if labels is None else labels.repeat_interleave(steps)
    return model.decode(z, context).float().cpu()


def plane(h: Tensor) -> tuple[Tensor, float | None]:
    """Two numbers (N, 2) for each of the codes h (N, L), and the share of the variance that they keep.

    The share is None if L = 2, where the numbers are the code itself. Otherwise they are the first two principal
    components; the sign of each is chosen so that its largest weight is positive. Raises RequestError if L = 1.
    """
    if h.shape[1] < 2:
        raise RequestError("a plane needs a code of at least 2 numbers, and model.latent_dim is 1")
    if h.shape[1] == 2:
        return h, None
    centred = h.double() - h.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = directions[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return (centred @ axes).float(), (variances[-2:].sum() / variances.sum().clamp_min(1e-300)).item()


def kl_per_unit(model: Latent, x: Tensor, context: Tensor | None = None) -> Tensor:
    """KL of every unit's posterior from the prior in nats, averaged over the images x (N, C, H, W): (L,) float64."""
    total = torch.zeros(model.latent_dim, dtype=torch.double)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # a learnt prior takes a draw of z
        for part, part_context in _batches(x, context, _device_of(model)):
            total += model.kl_per_unit(part, part_context).double().sum(0).cpu()
    return total / len(x)


def _batches(x: Tensor, context: Tensor | None, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`BATCH` images or codes at a time with their contexts, on the device."""
    for start in range(0, len(x), BATCH):
        rows = slice(start, start + BATCH)
        yield x[rows].to(device), None if context is None else context[rows].to(device)


def _device_of(model: Coder | Latent) -> torch.device:
    assert isinstance(model, nn.Module)
    return next(model.parameters()).device
