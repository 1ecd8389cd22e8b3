"""Images by repeated denoising. A denoising autoencoder has no distribution to sample; these chains take its place.

r(y): expected clean image given a corrupted one y (B, C, H, W), scaled to [0, 1].

`walkback_chain` corrupts the image, draws a clean image given the corrupted one, and repeats (generalised denoising
autoencoders, Bengio et al. 2013, arXiv:1305.6663, sec. 3). If p(x | y) is right, the chain settles to the distribution
of the data, for any corruption that mixes. The paper's walk-back *training*, which trains the denoiser on the mistakes
of its own chain, is not done here. A model without a distribution of pixels can only use r(y) instead of a draw. Its
chain then varies too little: on Gaussian data of variance S, with a = S / (S + sigma^2), it keeps about half of the
variance, S a / (1 + a). With masking it is worse: the model treats the grey mean of a masked pixel as an observed
value, so the images become blobs. If `known` pixels are put back after every draw, the chain is an approximate
completion. The model gets the known pixels only after corruption: on Gaussian data the mean is E[y_unknown | y_known =
x_known] under the density of *corrupted* images.

`denoising_langevin`: noise of variance sigma^2 turns the data into a smooth density. Its score follows from r by
Tweedie's formula,
    grad ln p(y) = (r(y) - y) / sigma^2
(Vincent 2011, Neural Computation 23; Alain & Bengio 2014, arXiv:1211.4246). So y moves in the density of *noisy*
images, and r(y) is the clean image expected there (walk-jump sampling, Saremi & Hyvarinen 2019, arXiv:1903.02334).
Steps are not corrected by rejections: with e = `STEP` sigma^2, the variance of Gaussian data is too large by the factor
1 / (1 - e / (4 (S + sigma^2))), at most 1 / (1 - STEP / 4).

Both converge only if they mix, and r is learnt near the data only. So the end of a finite chain from noise illustrates
what the model learnt. It is not a sample of a distribution of the model. There is no temperature either.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.models.noise import normal

STEP = 0.25  # of Langevin, in units of sigma^2: the variance is at most 1/15 too large


def walkback_chain(
    x: Tensor,
    *,
    corrupt: Callable[[Tensor], Tensor],
    renew: Callable[[Tensor], Tensor],
    steps: int,
    known: Tensor | None = None,
) -> Tensor:
    """x (B, C, H, W) in [0, 1] after `steps` times `renew(corrupt(x))`, and unchanged where `known` (B, 1, H, W)."""
    start = x
    for _ in range(steps):
        x = renew(corrupt(x))
        x = x if known is None else torch.where(known, start, x)
    return x


def denoising_langevin(
    y: Tensor,
    *,
    denoise: Callable[[Tensor], Tensor],
    sigma: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noisy images y (B, C, H, W) after `steps` Langevin steps in the density of images with noise of `sigma`."""
    size = STEP * sigma**2
    for _ in range(steps):
        score = (denoise(y) - y) / sigma**2
        noise = normal(*y.shape, device=y.device, generator=generator, dtype=y.dtype)
        y = y + size / 2 * score + size**0.5 * noise
    return y
