"""The prior of a latent Gaussian model, one unit after the other:

    p(z) = prod_i N(z_i; mean_i(z_<i), exp log_var_i(z_<i)),    z_i = mean_i(z_<i) + exp(log_var_i(z_<i) / 2) e_i

A causal network gives means and log-variances (Kingma et al. 2016, arXiv:1606.04934; Chen et al. 2017,
arXiv:1611.02731; as a density, Papamakarios et al. 2017, arXiv:1705.07057). Without a network they are 0, and the prior
is N(0, I). A network whose last layer is 0 begins there too. z is an invertible function of its noise e ~ N(0, I).

The units of q(z | x) are independent, so the KL of q from p is a sum over units,

    KL(q || p) = sum_i E_q KL(q(z_i | x) || p(z_i | z_<i))

Each KL is that of two normal distributions, in closed form given z_<i. So one draw of z gives an unbiased estimate. It
has less noise than log q(z | x) - log p(z), is never negative, and for N(0, I) it is the KL itself.

At a temperature T, the variance of every conditional is multiplied by T (`core.Draw`).

L latent units; leading dimensions of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.core import RequestError, declared

LOG_2PI = math.log(2 * math.pi)


class LatentPrior(nn.Module):
    """p(z) of L = `units` numbers. `net(units=)`: the constructor of a causal network (..., L) -> (..., 2 L), or None.

    Raises RequestError for a constructor of another kind.
    """

    def __init__(self, units: int, net: Callable[..., nn.Module] | None = None) -> None:
        super().__init__()
        if net is not None and not declared(net, "of_reals"):
            raise RequestError(
                "the latents of this model are real numbers: choose model/prior=normal or autoregressive (the others "
                "are priors of the codes of model=vqvae)"
            )
        self.net = None if net is None else net(units=units)

    @property
    def is_normal(self) -> bool:
        """True if p(z) = N(0, I), whatever the weights."""
        return self.net is None

    def conditionals(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., L) -> mean and log-variance of every unit given the earlier ones, (..., L) each."""
        if self.net is None:
            zeros = torch.zeros_like(z)
            return zeros, zeros
        precision = next(self.net.parameters()).dtype
        mean, log_var = self.net(z.to(precision)).to(z.dtype).chunk(2, -1)
        return mean, log_var.clamp(-15, 10)

    def noise_of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., L) -> its noise e (..., L), and the log-variances."""
        mean, log_var = self.conditionals(z)
        return (z - mean) * (-log_var / 2).exp(), log_var

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """Noise (..., L) -> z (..., L), unit after unit. Noise of N(0, T I) gives z at temperature T."""
        if self.net is None:
            return noise
        z = torch.zeros_like(noise)
        for i in range(noise.shape[-1]):
            mean, log_var = self.conditionals(z)
            z[..., i] = mean[..., i] + (log_var[..., i] / 2).exp() * noise[..., i]
        return z

    def log_prob(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """log p(z) at a temperature, nats (...)."""
        noise, log_var = self.noise_of(z)
        log_det = log_var.sum(-1) + z.shape[-1] * math.log(temperature)
        return log_normal(noise / math.sqrt(temperature)) - log_det / 2

    def kl(self, mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        """KL of every unit of q = N(mean, diag exp log_var) from the prior given the earlier units, nats (..., L).

        The earlier units are those of the z ~ q that has this noise of N(0, I), (..., L).
        """
        prior_mean, prior_log_var = self.conditionals(reparameterised(mean, log_var, noise))
        squares = (mean - prior_mean).square() + log_var.exp()
        return (squares * (-prior_log_var).exp() - 1 - log_var + prior_log_var) / 2


def log_normal(z: Tensor, mean: Tensor | None = None, log_var: Tensor | None = None) -> Tensor:
    """log N(z; mean, diag exp log_var) over the last dimension, nats; of the standard normal without them."""
    if mean is None or log_var is None:
        return -(z.square() + LOG_2PI).sum(-1) / 2
    return -((z - mean).square() / log_var.exp() + log_var + LOG_2PI).sum(-1) / 2


def reparameterised(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z of N(mean, diag exp log_var) from noise of N(0, I)."""
    return mean + (log_var / 2).exp() * noise
