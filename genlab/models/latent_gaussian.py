"""Latent Gaussian models: p(x) = integral of p(x | z) N(z; 0, I), with an encoder q(z | x) (variational autoencoders;
Kingma & Welling 2014, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082).

Any head is the decoder's distribution p(x | z), a probability of the integers, so every number is on the scale of the
exact models. q(z | x) = N(mean(x), diag exp log_var(x)).

    log w = log p(x | z) + log p(z) - log q(z | x),  z ~ q(z | x),         E[w] = p(x)

`log_prob` is one draw of log w. The mean of one draw is the ELBO; log of the mean of k draws is the tighter bound of
Burda et al. (2016, arXiv:1509.00519), which tends to log p(x). Averages of "log p(x | z) - KL(q || p)" are no such
bound: the KL in closed form belongs to training, where it is the same ELBO with less noise, and nowhere else.

What trains (never what is evaluated):

    bound      elbo: one draw and the closed-form KL, times `beta` (Higgins et al. 2017), which grows from 0 over
               `warm_up` batches, and no unit's below `free_bits` (Kingma et al. 2016, arXiv:1606.04934, app. C.8)
               iwae: `train_draws` draws;  dreg: the same with the encoder's doubly reparameterised gradient
               (Tucker et al. 2019, arXiv:1810.04152), whose signal does not drown as draws are added
    inference  posterior: all of the above;  map: "guess the most likely z": the decoder sees the encoder's mean alone
               and log p(x, z) is what grows. A width of q for every unit is fitted beside it, changing nothing else,
               because a bound needs one.

Completion: z is drawn by weight from particles, half of which come from q of the image with its unknown pixels filled
in as expected, half from the prior; then the unknown pixels from p(x | z). Right as particles grow.

B images, L latent units, T steps of c values, k draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Filters, ImageSpec, RequestError, from_steps, to_steps
from genlab.models.conditioning import suited
from genlab.models.layers import hidden_layers
from genlab.system.device import moved, true_float32

BOUNDS, INFERENCES = ("elbo", "iwae", "dreg"), ("posterior", "map")
LOG_2PI = math.log(2 * math.pi)
FILLS = 5  # times the unknown pixels are filled in, encoded and filled in again, before particles are drawn


class LatentGaussian(nn.Module):
    """Encoder, decoder and head, and perhaps a context part.

    `encoder(spec=, outputs=)`, `decoder(spec=, inputs=, step_channels=, features=)`, `head(width=, channels=, levels=)`
    and `context(spec=)` arrive unfinished. `features`: per step, for the head. `free_bits`: nats a unit.
    """

    exact = False
    completion = "weighted"
    measured_in, on = "nats", 0.0  # of a `core.Coder`; its code is the mean of q(z | x)
    asked: Mapping[str, float] = MappingProxyType({})

    step: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        *,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        head: Callable[..., nn.Module],
        latent_dim: int,
        features: int = 8,
        context: Callable[..., nn.Module] | None = None,
        bound: str = "elbo",
        train_draws: int = 1,
        beta: float = 1.0,
        free_bits: float = 0.0,
        warm_up: int = 0,
        inference: str = "posterior",
    ) -> None:
        super().__init__()
        if head is None:
            raise RequestError("a latent Gaussian model needs a model/head= other than none: it is p(x | z)")
        if latent_dim < 1 or features < 1:
            raise RequestError(f"latent_dim and features must be 1 or more, got {latent_dim} and {features}")
        if bound not in BOUNDS or inference not in INFERENCES:
            raise RequestError(
                f"choose model.bound={'|'.join(BOUNDS)} and model.inference={'|'.join(INFERENCES)}, "
                f"got {bound} and {inference}"
            )
        if beta < 0 or free_bits < 0 or warm_up < 0:
            raise RequestError(f"beta, free_bits and warm_up must be 0 or more, got {beta}, {free_bits} and {warm_up}")
        if (bound == "elbo") != (train_draws == 1) or train_draws < 1:
            raise RequestError(
                f"model.bound={bound} with model.train_draws={train_draws}: elbo takes 1, iwae and dreg 2 or more"
            )
        plain = (beta, free_bits, warm_up) == (1, 0, 0)
        if not plain and (bound != "elbo" or inference == "map"):
            raise RequestError(
                "beta, free_bits and warm_up change the KL of model.bound=elbo; other bounds and map have none"
            )
        if inference == "map" and bound != "elbo":
            raise RequestError("model.inference=map has one guess an image: it goes with model.bound=elbo")
        self.spec, self.latent_dim, self.bound, self.train_draws = spec, latent_dim, bound, train_draws
        self.beta, self.free_bits, self.warm_up, self.inference = beta, free_bits, warm_up, inference
        self.context = None if context is None else context(spec=spec)
        self.conditioning = "none" if self.context is None else str(self.context.kind)
        width = int(getattr(self.context, "width", 0))
        self.encoder: Any = encoder(spec=spec, outputs=latent_dim * (2 if inference == "posterior" else 1))
        part = getattr(head, "func", head)  # a partial asks its class
        together = getattr(part, "chains_colours", False) or getattr(part, "independent", False)
        self.step_channels = spec.channels if together else 1
        self.decoder: Any = decoder(
            spec=spec, inputs=latent_dim + width, step_channels=self.step_channels, features=features
        )
        self.head: Any = head(width=features, channels=self.step_channels, levels=spec.levels)
        if width:
            self.to_posterior = nn.Linear(width, 2 * latent_dim if inference == "posterior" else latent_dim, bias=False)
            self.to_features = nn.Conv2d(width, spec.channels // self.step_channels * features, 1, bias=False)
        if inference == "map":
            self.log_var = nn.Parameter(torch.full((latent_dim,), -4.0))  # narrow, as a guess is
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    # ---- training

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Each (B,), nats: "loss", beside "rate", the KL of q(z | x) from the prior, and "distortion", -log p(x | z).

        After training the loss is the negative ELBO, whatever trained: beta 1, no free bits, one draw.
        """
        given = self._given(context, len(x))
        mean, log_var = self.posterior(x, given=given)
        kl = (mean.square() + log_var.exp() - 1 - log_var) / 2  # (B, L)
        if self.training:
            self.step += 1
            if self.bound != "elbo":
                return self._weighted(x, mean, log_var, given) | {"rate": kl.sum(1).detach()}
            if self.inference == "map":
                return self._guessed(x, mean, log_var, given) | {"rate": kl.sum(1).detach()}
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        distortion = -self._log_likelihood(x, z, given).sum(1)
        loss = distortion + (self._priced(kl) if self.training else kl.sum(1))
        return {"loss": loss, "rate": kl.sum(1).detach(), "distortion": distortion.detach()}

    def _priced(self, kl: Tensor) -> Tensor:
        """KL (B, L) -> what training pays for it (B,)."""
        beta = self.beta * (1.0 if not self.warm_up else (self.step / self.warm_up).clamp(max=1))
        if self.free_bits:
            # A unit whose mean over the batch is below has it for free: the price is constant and has no gradient.
            kl = torch.where(kl.mean(0) > self.free_bits, kl, self.free_bits)
        found: Tensor = beta * kl.sum(1)
        return found

    def _weighted(self, x: Tensor, mean: Tensor, log_var: Tensor, given: Tensor | None) -> dict[str, Tensor]:
        """-log of the mean of k weights; for dreg a surrogate with the right gradients is added, whose value is 0."""
        k, b = self.train_draws, len(x)
        z = mean + (log_var / 2).exp() * torch.randn(k, *mean.shape, dtype=mean.dtype, device=mean.device)
        fixed = self.bound == "dreg"
        q_mean, q_log_var = (mean.detach(), log_var.detach()) if fixed else (mean, log_var)
        repeated = None if given is None else given.repeat(k, 1, 1, 1)
        likelihood = self._log_likelihood(x.repeat(k, 1, 1, 1), z.flatten(0, 1), repeated).sum(1).view(k, b)
        log_w = likelihood + _log_normal(z) - _log_normal(z, q_mean, q_log_var)
        loss = math.log(k) - log_w.logsumexp(0)
        if fixed and z.requires_grad:
            # The loss gives each draw's path through z its share of the weight; dreg wants that share squared.
            share = log_w.detach().softmax(0)[..., None]
            z.register_hook(lambda gradient: share * gradient)
        return {"loss": loss, "distortion": -likelihood.mean(0).detach()}

    def _guessed(self, x: Tensor, mean: Tensor, log_var: Tensor, given: Tensor | None) -> dict[str, Tensor]:
        """-log p(x, z) at the guess; and of the widths of q the ELBO's gradient, which reaches nothing else."""
        distortion = -self._log_likelihood(x, mean, given).sum(1)
        loss = distortion - _log_normal(mean)
        noise = torch.randn_like(mean)
        z = (mean + (log_var / 2).exp() * noise).detach().requires_grad_()
        if torch.is_grad_enabled():
            kept = None if given is None else given.detach()
            (slope,) = torch.autograd.grad(-self._log_likelihood(x, z, kept).sum(), z)
            widths = ((log_var / 2).exp() * noise * slope + (log_var.exp() - log_var) / 2).sum(1)
            loss = loss + widths - widths.detach()
        return {"loss": loss, "distortion": distortion.detach()}

    # ---- likelihood and latents

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> one draw of log w, nats (B,); its mean is the ELBO."""
        given = self._given(context, len(x))
        mean, log_var = self.posterior(x, given=given)
        noise = torch.randn_like(mean)
        z = mean + (log_var / 2).exp() * noise
        return self._log_likelihood(x, z, given).sum(1) + (noise.square() - z.square() + log_var).sum(1) / 2

    def posterior(
        self, x: Tensor, context: Tensor | None = None, *, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Integers (B, C, H, W) -> mean and log-variance of q(z | x), (B, L) each. `given`: features of the context, if
        they are at hand.
        """
        self.spec.check(x)
        return self._encoded(self.scaled(x), self._given(context, len(x)) if given is None else given)

    def encode(self, x: Tensor, *, corrupted: bool = False, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> the mean of q(z | x) (B, L); nothing is ever corrupted."""
        return self.posterior(x, context)[0]

    def decode(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents (B, L) -> expected images (B, C, H, W) in [0, 1]."""
        return self._expected(h, self._given(context, len(h)))

    def reconstruct(self, x: Tensor, *, corrupted: bool = False, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> the levels nearest to what the mean of q(z | x) decodes to."""
        top = self.spec.levels - 1
        return (self.decode(self.encode(x, context=context), context) * top).round().clamp(0, top).long()

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Hidden layers of the encoder as the next one reads them, and the "code", the mean of q(z | x) (B, L)."""
        return hidden_layers(self.encoder, lambda: self.encode(x, context=context))

    def filters(self) -> Tensor | None:
        """Weights of the encoder's first layer as images (N, C, h, w), if it has such."""
        return self.encoder.filters() if isinstance(self.encoder, Filters) else None

    # ---- drawing

    @true_float32()
    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n images (n, C, H, W), integers. The temperature t: z from p(z)^(1/t), pixels from p(x | z)^(1/t)."""
        return self._drawn(self.prior(n, temperature, generator), self._given(context, n), temperature, generator)

    def prior(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """z (n, L) from N(0, temperature I)."""
        return math.sqrt(temperature) * self._noise(n, self.latent_dim, generator=generator, normal=True)

    @true_float32()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        context: Tensor | None = None,
        particles: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Completion:
        """Keep x (B, C, H, W) where known (B, H, W) and draw the rest given it, from so many particles an image."""
        x, known = moved(x, self._device), moved(known, self._device)
        given, b, p = self._given(context, len(x)), len(x), particles
        where = known[:, None].expand_as(x)
        mean, log_var = self._filled(x, where, given)
        from_prior = torch.arange(p, device=self._device) % 2 == 1  # one particle alone comes from the encoder
        noise = self._noise(b, p, self.latent_dim, generator=generator, normal=True)
        z = torch.where(from_prior[:, None], noise, mean[:, None] + (log_var / 2).exp()[:, None] * noise)
        repeated = None if given is None else given.repeat_interleave(p, 0)
        each = self._log_likelihood(x.repeat_interleave(p, 0), z.flatten(0, 1), repeated).view(b, p, -1)
        counted = to_steps(where, self.step_channels).all(2)[:, None]
        prior, q = _log_normal(z), _log_normal(z, mean[:, None], log_var[:, None])
        share = from_prior.double().mean()
        proposal = torch.logaddexp(prior + share.log(), q + (1 - share).log())
        weights = ((each * counted).sum(2) + prior - proposal).double().softmax(1)
        one = (weights.cumsum(1) < self._noise(b, 1, generator=generator)).sum(1).clamp(max=p - 1)
        drawn = self._drawn(z[torch.arange(b, device=z.device), one], given, temperature, generator)
        return Completion(torch.where(where, x.long(), drawn), 1 / weights.square().sum(1))

    def _filled(self, x: Tensor, where: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """q(z | x) of images whose unknown values are as expected, over and over, beginning with z = 0."""
        y = self.scaled(x)
        z = y.new_zeros(len(x), self.latent_dim)
        for _ in range(FILLS):
            mean, log_var = self._encoded(torch.where(where, y, self._expected(z, given)), given)
            z = mean
        return mean, log_var

    def _drawn(self, z: Tensor, given: Tensor | None, temperature: float, generator: torch.Generator | None) -> Tensor:
        """Latents (B, L) -> integers (B, C, H, W) from p(x | z)^(1/temperature)."""
        pixels = self.head(self._decoded(z, given))
        noise = self._noise(len(z), self.spec.dims // self.step_channels, self.head.noise_size, generator=generator)
        return from_steps((pixels if temperature == 1 else pixels.tempered(temperature)).sample(noise), self.spec)

    # ---- parts

    def scaled(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> [0, 1]."""
        return x.to(self.dtype) / (self.spec.levels - 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _given(self, context: Tensor | None, n: int) -> Tensor | None:
        """Features of the context, (n, E, 1, 1) or (n, E, H, W); None without."""
        context = suited(context, self.conditioning, n)
        return None if context is None else self.context(moved(context, self._device))  # type: ignore[misc]

    def _encoded(self, y: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] -> mean and log-variance of q."""
        found = self.encoder(y).to(self.dtype)
        if given is not None:
            found = found + self.to_posterior(given.mean((2, 3))).to(self.dtype)
        if self.inference == "map":
            return found, self.log_var.expand_as(found)
        mean, log_var = found.chunk(2, 1)
        return mean, log_var.clamp(-15, 10)

    def _decoded(self, z: Tensor, given: Tensor | None) -> Tensor:
        """Latents (B, L) -> features of every step (B, T, D)."""
        if given is None:
            found: Tensor = self.decoder(z)
            return found.to(self.dtype)
        found = self.decoder(torch.cat([z, given.mean((2, 3))], 1)).to(self.dtype)
        local = self.to_features(given).expand(-1, -1, self.spec.height, self.spec.width)
        return found + local.permute(0, 2, 3, 1).reshape(len(z), -1, found.shape[2]).to(self.dtype)

    def _log_likelihood(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        """log p of every step given z, nats (B, T)."""
        found: Tensor = self.head(self._decoded(z, given)).log_prob(to_steps(x, self.step_channels))
        return found

    def _expected(self, z: Tensor, given: Tensor | None) -> Tensor:
        """Latents (B, L) -> expected images (B, C, H, W) in [0, 1]."""
        return from_steps(self.head(self._decoded(z, given)).mean() / (self.spec.levels - 1), self.spec).to(self.dtype)

    def _noise(self, *size: int, generator: torch.Generator | None, normal: bool = False) -> Tensor:
        """Normal or uniform numbers, drawn where the generator lives."""
        device = self._device if generator is None else generator.device
        draw = torch.randn if normal else torch.rand
        drawn = draw(*size, generator=generator, device=device, dtype=torch.float)
        return moved(drawn, self._device).to(self.dtype)


def _log_normal(z: Tensor, mean: Tensor | None = None, log_var: Tensor | None = None) -> Tensor:
    """log N(z; mean, diag exp log_var) over the last dimension, nats; of the standard normal without them."""
    if mean is None or log_var is None:
        return -(z.square() + LOG_2PI).sum(-1) / 2
    return -((z - mean).square() / log_var.exp() + log_var + LOG_2PI).sum(-1) / 2
