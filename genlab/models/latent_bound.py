"""Training objectives of a latent Gaussian model: a bound on log p(x), or the most likely z. They are not for
evaluation.

    bound      elbo: one draw of z and the KL of every unit (`latent_prior.py`), times `beta` (Higgins et al. 2017).
               beta grows from 0 over `warm_up` batches; a unit costs at least `free_bits` nats (Kingma et al. 2016,
               arXiv:1606.04934, C.8).
               iwae: the log of the mean of `train_draws` weights (Burda et al. 2016, arXiv:1509.00519).
               dreg: the same value with the doubly reparameterised gradient of the encoder (Tucker et al. 2019,
               arXiv:1810.04152), whose signal-to-noise ratio does not fall as draws are added.
    inference  posterior: all of the above.
               map: the decoder gets the encoder's mean as the most likely z, and log p(x, z) is maximised.
               The widths of q are fitted as well, because evaluation needs them. They change no other weights.

B images, L latent units, k draws. log_likelihood(z) is log p(x | z) in nats: latents (B, L) -> (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.core import RequestError
from genlab.models.latent_prior import LatentPrior, log_normal, reparameterised

BOUNDS, INFERENCES = ("elbo", "iwae", "dreg"), ("posterior", "map")


@dataclass(frozen=True)
class Bound:
    """The training options of a latent Gaussian model's config. `free_bits`: nats a unit, in spite of the name."""

    bound: str = "elbo"
    train_draws: int = 1
    beta: float = 1.0
    free_bits: float = 0.0
    warm_up: int = 0
    inference: str = "posterior"

    def __post_init__(self) -> None:
        beta, free_bits, warm_up = self.beta, self.free_bits, self.warm_up
        if self.bound not in BOUNDS or self.inference not in INFERENCES:
            raise RequestError(
                f"choose model.bound={'|'.join(BOUNDS)} and model.inference={'|'.join(INFERENCES)}, "
                f"got {self.bound} and {self.inference}"
            )
        if beta < 0 or free_bits < 0 or warm_up < 0:
            raise RequestError(f"beta, free_bits and warm_up must be 0 or more, got {beta}, {free_bits} and {warm_up}")
        if (self.bound == "elbo") != (self.train_draws == 1) or self.train_draws < 1:
            raise RequestError(
                f"model.bound={self.bound} with model.train_draws={self.train_draws}: elbo takes 1, iwae and dreg 2 or "
                "more"
            )
        plain = (beta, free_bits, warm_up) == (1, 0, 0)
        if not plain and (self.bound != "elbo" or self.guesses):
            raise RequestError(
                "beta, free_bits and warm_up change the KL of model.bound=elbo; other bounds and map have none"
            )
        if self.guesses and self.bound != "elbo":
            raise RequestError("model.inference=map has one z for each image: it needs model.bound=elbo")

    @property
    def guesses(self) -> bool:
        """True if the decoder is trained on the most likely z alone."""
        return self.inference == "map"

    def loss(
        self,
        log_likelihood: Callable[[Tensor], Tensor],
        mean: Tensor,
        log_var: Tensor,
        step: Tensor,
        prior: LatentPrior,
    ) -> dict[str, Tensor]:
        """Training loss for q(z | x) = N(mean, diag exp log_var), (B, L) each, at batch number `step`.

        Nats (B,) each: "loss"; "rate", the KL of q from the prior; "distortion", -log p(x | z).
        """
        if self.bound != "elbo":
            return self._importance_weighted(log_likelihood, mean, log_var, prior)
        if self.guesses:
            return _most_likely(log_likelihood, mean, log_var, prior)
        return elbo(log_likelihood, mean, log_var, prior, lambda kl: self.price(kl, step))

    def price(self, kl: Tensor, step: Tensor) -> Tensor:
        """KL of every unit (B, L) -> its term in the training loss (B,), nats: scaled by beta, with free bits."""
        beta = self.beta * (1.0 if not self.warm_up else (step / self.warm_up).clamp(max=1))
        if self.free_bits:
            # A unit whose mean KL over the batch is below this constant costs the constant, which has no gradient.
            kl = torch.where(kl.mean(0) > self.free_bits, kl, self.free_bits)
        price: Tensor = beta * kl.sum(1)
        return price

    def _importance_weighted(
        self, log_likelihood: Callable[[Tensor], Tensor], mean: Tensor, log_var: Tensor, prior: LatentPrior
    ) -> dict[str, Tensor]:
        """Minus the log of the mean of k weights. The rate is that of the first draw."""
        k, batch = self.train_draws, len(mean)
        noise = torch.randn(k, *mean.shape, dtype=mean.dtype, device=mean.device)
        z = reparameterised(mean, log_var, noise)
        double = self.bound == "dreg"
        q_mean, q_log_var = (mean.detach(), log_var.detach()) if double else (mean, log_var)
        likelihood = log_likelihood(z.flatten(0, 1)).view(k, batch)
        log_w = likelihood + prior.log_prob(z) - log_normal(z, q_mean, q_log_var)
        loss = math.log(k) - log_w.logsumexp(0)
        if double and z.requires_grad:
            # The gradient through each z has the normalised weight of z as a factor. dreg needs the square of this
            # weight.
            share = log_w.detach().softmax(0)[..., None]
            z.register_hook(lambda gradient: share * gradient)
        with torch.no_grad():
            rate = prior.kl(mean, log_var, noise[0]).sum(1)
        return {"loss": loss, "rate": rate, "distortion": -likelihood.mean(0).detach()}


def elbo(
    log_likelihood: Callable[[Tensor], Tensor],
    mean: Tensor,
    log_var: Tensor,
    prior: LatentPrior,
    price: Callable[[Tensor], Tensor] = lambda kl: kl.sum(1),
) -> dict[str, Tensor]:
    """The negative ELBO of one draw of z: "loss", "rate" and "distortion", nats (B,) each.

    `price`: KL of every unit (B, L) -> its term in the loss (B,).
    """
    noise = torch.randn_like(mean)
    kl = prior.kl(mean, log_var, noise)
    distortion = -log_likelihood(reparameterised(mean, log_var, noise))
    return {"loss": distortion + price(kl), "rate": kl.sum(1).detach(), "distortion": distortion.detach()}


def _most_likely(
    log_likelihood: Callable[[Tensor], Tensor], mean: Tensor, log_var: Tensor, prior: LatentPrior
) -> dict[str, Tensor]:
    """-log p(x, z) at the mean of q. The widths of q, and no other weights, also get the gradient of the ELBO.

    The prior is N(0, I): a learnt density could be made as large as one likes at the means.
    """
    distortion = -log_likelihood(mean)
    loss = distortion - prior.log_prob(mean)
    noise = torch.randn_like(mean)
    z = reparameterised(mean, log_var, noise).detach().requires_grad_()
    if torch.is_grad_enabled():
        (slope,) = torch.autograd.grad(-log_likelihood(z).sum(), z)
        widths = ((log_var / 2).exp() * noise * slope + (log_var.exp() - log_var) / 2).sum(1)
        loss = loss + widths - widths.detach()
    rate = prior.kl(mean, log_var, noise).sum(1).detach()
    return {"loss": loss, "rate": rate, "distortion": distortion.detach()}
