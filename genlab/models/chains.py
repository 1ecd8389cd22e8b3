"""Images from a denoiser by iteration: what a denoising autoencoder offers in place of sampling.

r(y): expected clean image given a corrupted one y (B, C, H, W), scaled to [0, 1].

`walk`: corrupt, draw a clean image given the corrupted one, and again (generalised denoising autoencoders, Bengio et
al. 2013, arXiv:1305.6663, sec. 3). Where p(x | y) is right, the images that the chain settles to are those of the data,
for any corruption that mixes. Their walk-back *training*, which teaches the denoiser its own chain's mistakes, is not
done here. A model without a distribution of pixels can only go on with r(y) in place of a draw, and then varies too
little: on Gaussian data of variance S, with a = S / (S + sigma^2), it keeps the variance S a / (1 + a), about half.
Worse with masking: a grey mean is read as a value that was seen, so means of means fill up to blobs.
With `known` pixels put back after every draw it is an approximate completion: the model reads the known pixels through
their corruption, so on Gaussian data the mean is E[y_unknown | y_known = x_known] of the *corrupted* images' density.

`langevin`: noise of variance sigma^2 makes of the data a smooth density, whose score r knows by Tweedie's formula,
    grad ln p(y) = (r(y) - y) / sigma^2
(Vincent 2011, Neural Computation 23; Alain & Bengio 2014, arXiv:1211.4246). So y walks in the density of *noisy*
images, and r(y) is the clean image expected there (walk-jump sampling, Saremi & Hyvarinen 2019, arXiv:1903.02334).
Steps are not corrected by rejections: with e = `STEP` sigma^2, the variance of Gaussian data is too large by the factor
1 / (1 - e / (4 (S + sigma^2))), at most 1 / (1 - STEP / 4).

Either converges only if it mixes, and r is learnt near the data alone: what a finite chain from noise gives is a
picture of what the model learnt, not a sample of a distribution it has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.system.device import moved

STEP = 0.25  # of Langevin, in units of sigma^2: the variance is at most 1/15 too large


def walk(
    x: Tensor,
    *,
    corrupt: Callable[[Tensor], Tensor],
    renew: Callable[[Tensor], Tensor],
    steps: int,
    known: Tensor | None = None,
) -> Tensor:
    """x (B, C, H, W) in [0, 1] after `steps` times `renew(corrupt(x))`; where `known` (B, 1, H, W) it stays."""
    given = x
    for _ in range(steps):
        x = renew(corrupt(x))
        x = x if known is None else torch.where(known, given, x)
    return x


def langevin(
    y: Tensor,
    *,
    denoise: Callable[[Tensor], Tensor],
    sigma: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noisy images y (B, C, H, W) after `steps` Langevin steps in the density of images with noise of `sigma`."""
    size = STEP * sigma**2
    device = y.device if generator is None else generator.device
    for _ in range(steps):
        score = (denoise(y) - y) / sigma**2
        noise = moved(torch.randn(y.shape, generator=generator, device=device, dtype=y.dtype), y.device)
        y = y + size / 2 * score + size**0.5 * noise
    return y
