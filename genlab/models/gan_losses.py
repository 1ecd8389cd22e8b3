"""Losses of the two players of a GAN, as functions of the discriminator's scores D(x), real numbers without a sigmoid.

                      discriminator                                              generator
    nonsaturating     softplus(-D(real)) + softplus(D(fake))                     softplus(-D(fake))
    hinge             max(0, 1 - D(real)) + max(0, 1 + D(fake))                  -D(fake)
    wgan_gp           D(fake) - D(real) + penalty * (|grad D(mixed)| - 1)^2      -D(fake)

nonsaturating: Goodfellow et al. 2014 (arXiv:1406.2661); the best sigmoid(D) is p_real / (p_real + p_fake).
hinge: Lim & Ye 2017 (arXiv:1705.02894).
wgan_gp: Gulrajani et al. 2017 (arXiv:1704.00028). `mixed` is a random point between a real and a fake image; the
gradient is that with respect to the image.

B images; scores and losses are (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """Functions from scores (B,) to losses (B,). `penalised`: True if the discriminator has a gradient penalty."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    penalised: bool = False


LOSSES = {
    "nonsaturating": Loss(lambda real, fake: F.softplus(-real) + F.softplus(fake), lambda fake: F.softplus(-fake)),
    "hinge": Loss(lambda real, fake: (1 - real).relu() + (1 + fake).relu(), lambda fake: -fake),
    "wgan_gp": Loss(lambda real, fake: fake - real, lambda fake: -fake, penalised=True),
}


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """(|grad score| - 1)^2 (B,) at a uniformly random point between each real and fake image (B, C, H, W)."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    with torch.enable_grad():  # validation has switched it off
        mixed = torch.lerp(real, fake, share).detach().requires_grad_()
        (slope,) = torch.autograd.grad(score(mixed).sum(), mixed, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square()
