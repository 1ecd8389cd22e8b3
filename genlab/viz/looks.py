"""What a coder has learnt, seen from outside: of its encoder and decoder nothing is known but what they do.

- atom of a unit: what the unit adds to the image when it goes from 0 to 1 and the others are 0; of a linear decoder
  that is the unit's column.
- most activating images of a unit: those of a set at which it is largest.
- traversal: the decoded image while one unit of a code goes through its range in the data.
- walk: images of latents on the great circle between two draws of a normal prior, z(t) = a cos t + b sin t: every
  point of it is distributed as a draw (White 2016, arXiv:1609.04468, has the slightly different slerp).
- plane: two numbers an image; the code itself if it has two, else its first two principal components.

N images (N, C, H, W) of integers, L units, codes h (N, L).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from genlab.core import Coder, Latent, Pushforward, RequestError, RunError

BATCH = 256  # images or codes at once


def codes(
    coder: Coder, x: Tensor, advance: Callable[[int], object] = lambda done: None, context: Tensor | None = None
) -> Tensor:
    """Codes of all images, (N, L) float32 on the CPU. `advance` is told how many more are done."""
    found = []
    for part, given in _parts(x, context, _place(coder)):
        found.append(coder.encode(part, context=given).float().cpu())
        if not found[-1].isfinite().all():
            raise RunError("the codes of some images are not finite numbers: there is nothing to show of them")
        advance(len(part))
    return torch.cat(found)


def decoded(coder: Coder, h: Tensor, context: Tensor | None = None) -> Tensor:
    """Codes (N, L) -> expected images (N, C, H, W) in [0, 1], float32 on the CPU. A context is one for each code, or
    one for all.
    """
    parameter = next(coder.parameters())  # type: ignore[attr-defined]
    if context is not None and len(context) == 1:
        context = context.expand(len(h), *context.shape[1:])
    parts = _parts(h, context, parameter.device)
    return torch.cat([coder.decode(part.to(parameter), given).float().cpu() for part, given in parts])


def atoms(coder: Coder, units: Tensor, context: Tensor | None = None) -> Tensor:
    """What each of these units (U,) adds to an image, (U, C, H, W) in units of its range; given one context (1, …)."""
    alone = torch.zeros(len(units), coder.latent_dim)
    alone[torch.arange(len(units)), units] = 1
    return decoded(coder, alone, context) - decoded(coder, torch.zeros(1, coder.latent_dim), context)


def liveliest(h: Tensor, count: int) -> Tensor:
    """The `count` units that vary most over the images, the liveliest first; none that never changes: (U,)."""
    variance = h.double().var(0, correction=0)
    order = variance.argsort(descending=True, stable=True)
    return order[variance[order] > 0][:count]


def most_activating(h: Tensor, units: Tensor, count: int = 9) -> Tensor:
    """Indices (U, `count`) of the images at which each unit is largest, the largest first; fewer if there are fewer."""
    return h[:, units].topk(min(count, len(h)), 0).indices.T


def traversal(coder: Coder, h: Tensor, unit: int, values: Tensor, context: Tensor | None = None) -> Tensor:
    """Expected images (V, C, H, W) in [0, 1] of one code h (L,) whose `unit` takes each of the values (V,)."""
    varied = h.repeat(len(values), 1)
    varied[:, unit] = values.to(h)
    return decoded(coder, varied, context)


def walk(model: Pushforward, a: Tensor, b: Tensor, steps: int, labels: Tensor | None = None) -> Tensor:
    """Draws a and b (N, L) of the prior, and perhaps labels (N,) -> images (N * steps, C, H, W) in [0, 1]."""
    angle = torch.linspace(0, math.pi / 2, steps).to(a)[None, :, None]
    z = (a[:, None] * angle.cos() + b[:, None] * angle.sin()).flatten(0, 1)
    told = None if labels is None else labels.repeat_interleave(steps)
    return model.decode(z, told).float().cpu()


def plane(h: Tensor) -> tuple[Tensor, float | None]:
    """Codes -> (N, 2) and the share of the variance that this keeps; the share is None where it is the code itself.

    Every component points to where its largest weight is positive. RequestError for codes of one number.
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
    """KL of q(z | x) from the prior, mean over images (N, C, H, W), of every unit: (L,) nats."""
    total = torch.zeros(model.latent_dim, dtype=torch.double)
    for part, given in _parts(x, context, _place(model)):
        mean, log_var = model.posterior(part, given)
        total += ((mean.square() + log_var.exp() - 1 - log_var) / 2).double().sum(0).cpu()
    return total / len(x)


def _parts(x: Tensor, context: Tensor | None, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A batch at a time, with its part of the contexts, on the device."""
    for start in range(0, len(x), BATCH):
        here = slice(start, start + BATCH)
        yield x[here].to(device), None if context is None else context[here].to(device)


def _place(coder: Coder | Latent) -> torch.device:
    assert isinstance(coder, nn.Module)
    return next(coder.parameters()).device
