"""Images as a bits-back code of a latent Gaussian model: about minus the ELBO in bits for an image.

For every batch of images x the encoder pops latents z under q(z | x), pushes x under p(x | z) and pushes z under p(z).
The bits that the first step took from the stack come back when the decoder, who knows x by then, pushes z under
q(z | x) (Townsend, Bird, Barber 2019, arXiv:1901.04866). The images form one chain: each takes the bits that those
before it have left. Only the first ones take bits from the stack's initial words. So batches begin small and grow with
the stack.

A latent is a multiple of 2^-12, and q and p are normal distributions rounded to these values. The mean of a q is at
most 16 and its deviation at most 4. A wider q, or one further out, is moved there, which only costs bits. A learnt
prior is coded unit after unit, each given those that are popped before it, within the same bounds.

n images, L latent units, T steps of c values, K levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.coding.bit_stack import BitStack
from genlab.core import from_steps, to_steps

CELL = 2.0**-12  # the distance between two values of a latent
Q_REACH, P_REACH = 8, 64  # standard deviations beyond which q and p = N(0, I) are cut off
LEAST, FURTHEST = 1 / 16, 1024  # deviation of a unit under a learnt prior, and where it is cut off, beyond any z of q


SHARE = 2  # of images that are coded for each one that the next batch may add


def batches(n: int, most: int, share: int) -> list[slice]:
    """Slices of n images: single ones until `share` are coded, then 2 at once, …, up to `most`."""
    slices: list[slice] = []
    start = 0
    while start < n:
        size = min(n - start, most, 1 + start // share)
        slices.append(slice(start, start + size))
        start += size
    return slices


@torch.inference_mode()
def encode(model: Any, x: Tensor, most: int, context: Tensor | None = None) -> bytes:
    """Integers (n, C, H, W) -> the code; at most `most` images at once."""
    stack = BitStack(_initial_words(model))
    for part in batches(len(x), most, SHARE):
        images, labels = x[part].long(), None if context is None else context[part]
        mean, std = _posterior(model, images, labels)
        z = stack.pop_normal(mean, std, Q_REACH)
        _push_pixels(stack, model, z, images, labels)
        _push_latents(stack, model, z)
    return stack.stored()


@torch.inference_mode()
def decode(model: Any, code: bytes, n: int, most: int, context: Tensor | None = None) -> Tensor:
    """The code -> integers (n, C, H, W). Raises bit_stack.Corrupt if `encode` did not make it."""
    stack = BitStack(_initial_words(model), code)
    out = torch.zeros(n, *model.spec.shape, dtype=torch.long, device=model.device)
    for part in reversed(batches(n, most, SHARE)):
        labels = None if context is None else context[part]
        z = _pop_latents(stack, model, part.stop - part.start)
        out[part] = _pop_pixels(stack, model, z, labels)
        stack.push_normal(z, *_posterior(model, out[part], labels), Q_REACH)
    stack.check_restored()
    return out


def _initial_words(model: Any) -> int:
    """Enough for the latents of the first images."""
    return 2 * int(model.latent_dim) + 64


def _posterior(model: Any, x: Tensor, context: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of q(z | x), in cells, (n, L) each."""
    mean, log_var = (part.double().cpu() for part in model.posterior(x, context))
    std = (log_var / 2).exp() / CELL
    return (mean.clamp(-16, 16) / CELL).numpy(), std.clamp(0.25, 4 / CELL).numpy()


def _push_latents(stack: BitStack, model: Any, z: np.ndarray) -> None:
    """Push z (n, L), in cells, under p(z), so that the first unit is popped first."""
    if model.latent_prior.is_normal:
        stack.push_normal(z, *_standard(z), P_REACH)
        return
    for i in reversed(range(model.latent_dim)):
        stack.push_normal(z[:, i], *_conditional(model, z[:, :i]), FURTHEST)


def _pop_latents(stack: BitStack, model: Any, n: int) -> np.ndarray:
    """The inverse of `_push_latents`."""
    z = np.zeros((n, model.latent_dim), np.int64)
    if model.latent_prior.is_normal:
        return stack.pop_normal(*_standard(z), P_REACH)
    for i in range(model.latent_dim):
        z[:, i] = stack.pop_normal(*_conditional(model, z[:, :i]), FURTHEST)
    return z


def _standard(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of N(0, 1), in cells, of the shape of z."""
    return np.zeros(z.shape), np.full(z.shape, 1 / CELL)


def _conditional(model: Any, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first i units (n, i) -> mean and standard deviation of the next unit, in cells, (n,) each."""
    i = earlier.shape[1]
    z = torch.zeros(len(earlier), model.latent_dim, dtype=model.dtype, device=model.device)
    z[:, :i] = torch.from_numpy(earlier * CELL)
    mean, log_var = (part[:, i].double().cpu() for part in model.latent_prior.conditionals(z))
    std = (log_var / 2).exp().clamp(LEAST, 4)
    return (mean.clamp(-16, 16) / CELL).numpy(), (std / CELL).numpy()


def _push_pixels(stack: BitStack, model: Any, z: np.ndarray, x: Tensor, context: Tensor | None) -> None:
    """Push x (n, C, H, W) under p(x | z), so that the first value of every step is popped first."""
    pixels = _given(model, z, context)
    values = list(to_steps(x, model.step_channels).unbind(-1))
    tables = [_table(pixels.next_logits(values[:i])) for i in range(len(values))]
    for value, table in zip(reversed(values), reversed(tables), strict=True):
        stack.push_levels(value.cpu().numpy(), table)


def _pop_pixels(stack: BitStack, model: Any, z: np.ndarray, context: Tensor | None) -> Tensor:
    """The inverse of `_push_pixels`."""
    pixels = _given(model, z, context)
    values: list[Tensor] = []
    for _ in range(model.step_channels):
        given = pixels.next_logits(values)
        popped = torch.from_numpy(stack.pop_levels(_table(given)))
        values.append(popped.view(given.shape[:-1]).to(given.device))
    return from_steps(torch.stack(values, -1), model.spec)


def _given(model: Any, z: np.ndarray, context: Tensor | None) -> Any:
    """p(x | z) of every step for latents (n, L) in cells."""
    return model.pixels_given(torch.from_numpy(z * CELL).to(model.dtype).to(model.device), context)


def _table(logits: Tensor) -> np.ndarray:
    """Logits (..., K) -> probabilities (N, K)."""
    return logits.float().softmax(-1).double().flatten(0, -2).cpu().numpy()
