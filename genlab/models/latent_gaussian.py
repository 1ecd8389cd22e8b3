"""Latent Gaussian models: p(x) = integral of p(x | z) p(z), with an encoder q(z | x) (variational autoencoders; Kingma
& Welling 2014, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082).

p(z) is N(0, I), or it is learnt (`latent_prior.py`); it never depends on a context. Any head can be the decoder's
distribution p(x | z). It gives probabilities of integers, so bits/dim can be compared with those of exact models.
q(z | x) = N(mean(x), diag exp log_var(x)).

    log w = log p(x | z) + log p(z) - log q(z | x),  z ~ q(z | x),         E[w] = p(x)

`log_prob` is one draw of log w. The mean of one draw is the ELBO. The log of the mean of k weights is the tighter bound
of Burda et al. (2016, arXiv:1509.00519), which tends to log p(x). It needs log w itself: with log p(x | z) - KL(q || p)
in its place, the result could exceed log p(x). So the KL in closed form is used only for the ELBO of one draw, where it
reduces noise. The training objectives are in `latent_bound.py`.

Completion: z is drawn by weight from particles. Half of the particles come from q, given the image with its unknown
pixels filled in by their expectation. The others come from the prior. Then the unknown pixels are drawn from p(x | z).
The result tends to the conditional distribution as the number of particles grows.

At a temperature T the model is p(z_i | z_<i)^(1/T) for every unit i and p(x_t | z)^(1/T) for every step t, each
normalised; samples and completions are those of this model.

B images, L latent units, T steps of c values, P particles, E context features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, Filters, ImageSpec, RequestError, declared, from_steps, to_steps
from genlab.models.base import GenerativeModel
from genlab.models.latent_bound import Bound, elbo
from genlab.models.latent_prior import LatentPrior, log_normal, reparameterised
from genlab.models.layers import hidden_layers
from genlab.models.noise import normal, uniform
from genlab.system.device import moved

CONFIGURABLE = {"model": ("LatentGaussian",)}

FILLS = 5  # times the unknown pixels are filled in and the image is encoded, before particles are drawn


class LatentGaussian(GenerativeModel):
    """Encoder, decoder and head, and optionally networks for the prior and the context.

    `encoder(spec=, outputs=)`, `decoder(spec=, inputs=, step_channels=, features=)`, `head(width=, channels=, levels=)`
    and `context(spec=)` are constructors, and so is `prior(units=)`; without it p(z) is N(0, I). `features`: numbers a
    step that the head gets. `training`: keywords of `latent_bound.Bound`.
    """

    exact = False
    completion = "weighted"
    measured_in, threshold = "nats", 0.0  # of `core.Coder`; the code is the mean of q(z | x)
    targets: Mapping[str, float] = MappingProxyType({})

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
        prior: Callable[..., nn.Module] | None = None,
        context: Callable[..., nn.Module] | None = None,
        **training: Any,
    ) -> None:
        if head is None:
            raise RequestError("a latent Gaussian model needs a model/head= other than none: it is p(x | z)")
        if latent_dim < 1 or features < 1:
            raise RequestError(f"latent_dim and features must be 1 or more, got {latent_dim} and {features}")
        bound = Bound(**training)
        if prior is not None and bound.guesses:
            raise RequestError(
                "model.inference=map needs model/prior=normal: a learnt prior could make the density of the most "
                "likely z as large as it likes"
            )
        super().__init__(spec, context)
        self.latent_dim, self.bound = latent_dim, bound
        self.latent_prior = LatentPrior(latent_dim, prior)
        width = int(getattr(self.context, "width", 0))
        parameters = latent_dim if bound.guesses else 2 * latent_dim  # of q, which the encoder outputs
        self.encoder: Any = encoder(spec=spec, outputs=parameters)
        jointly = declared(head, "chains_colours") or declared(head, "independent")
        self.step_channels = spec.channels if jointly else 1
        self.decoder: Any = decoder(
            spec=spec, inputs=latent_dim + width, step_channels=self.step_channels, features=features
        )
        self.head: Any = head(width=features, channels=self.step_channels, levels=spec.levels)
        if width:
            self.to_posterior = nn.Linear(width, parameters, bias=False)
            self.to_features = nn.Conv2d(width, spec.channels // self.step_channels * features, 1, bias=False)
        if bound.guesses:
            self.log_var = nn.Parameter(torch.full((latent_dim,), -4.0))  # narrow: the decoder gets only the mean
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    # ---- likelihood and latents

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Nats (B,) each: "loss"; "rate", the KL of q(z | x) from the prior; "distortion", -log p(x | z).

        In training mode the loss is that of `bound`. In evaluation mode it is always the negative ELBO: beta 1,
        no free bits, one draw.
        """
        condition = self._condition(context, len(x))
        mean, log_var = self._posterior(x, condition)

        def log_likelihood(z: Tensor) -> Tensor:
            return self._log_likelihood(x, z, condition).sum(1)

        if self.training:
            self.step += 1
            return self.bound.loss(log_likelihood, mean, log_var, self.step, self.latent_prior)
        return elbo(log_likelihood, mean, log_var, self.latent_prior)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> one draw of log w, nats (B,). Its mean is the ELBO."""
        condition = self._condition(context, len(x))
        mean, log_var = self._posterior(x, condition)
        noise = torch.randn_like(mean)
        z = reparameterised(mean, log_var, noise)
        of_prior, prior_log_var = self.latent_prior.noise_of(z)
        log_ratio = (noise.square() - of_prior.square() + log_var - prior_log_var).sum(1) / 2  # of p(z) to q(z | x)
        return self._log_likelihood(x, z, condition).sum(1) + log_ratio

    def posterior(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Integers (B, C, H, W) -> mean and log-variance of q(z | x), (B, L) each."""
        return self._posterior(x, self._condition(context, len(x)))

    def kl_per_unit(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> KL of every unit of q(z | x) from the prior given the earlier units of one draw of
        z, nats (B, L) in double precision.
        """
        mean, log_var = self.posterior(x, context)
        return self.latent_prior.kl(mean.double(), log_var.double(), torch.randn_like(mean))

    def encode(self, x: Tensor, context: Tensor | None = None, *, corrupted: bool = False) -> Tensor:
        """Integers (B, C, H, W) -> the mean of q(z | x), (B, L). `corrupted` has no effect."""
        return self.posterior(x, context)[0]

    def decode(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents (B, L) -> expected images (B, C, H, W) in [0, 1]."""
        return self._expected(h, self._condition(context, len(h)))

    def reconstruct(self, x: Tensor, context: Tensor | None = None, *, corrupted: bool = False) -> Tensor:
        """Integers (B, C, H, W) -> the integers nearest to the expected image given the mean of q(z | x)."""
        return self.quantised(self.decode(self.encode(x, context), context))

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Hidden layers of the encoder after their activation, and the "code", the mean of q(z | x), (B, L)."""
        return hidden_layers(self.encoder, lambda: self.encode(x, context))

    def filters(self) -> Tensor | None:
        """Weights of the encoder's first layer as images (N, C, h, w); None if they are not pictures."""
        return self.encoder.filters() if isinstance(self.encoder, Filters) else None

    def pixels_given(self, z: Tensor, context: Tensor | None = None) -> Any:
        """Latents (B, L) -> p(x | z) of every step, as the head returns it for features (B, T, D)."""
        return self._given_z(z, self._condition(context, len(z)))

    # ---- drawing

    def prior(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """n draws of z (n, L) at temperature T. `keywords` are those of `Draw.of`."""
        draw = Draw.of(draw, **keywords)
        noise = normal(n, self.latent_dim, device=self.device, generator=draw.generator)
        return self.from_noise(math.sqrt(draw.temperature) * noise.to(self.dtype))

    def noise_of(self, z: Tensor) -> Tensor:
        """z (B, L) -> the noise (B, L) that the prior turns into it."""
        return self.latent_prior.noise_of(z)[0]

    def from_noise(self, noise: Tensor) -> Tensor:
        """Noise (B, L) -> z (B, L): draws of the prior if the noise is of N(0, I)."""
        return self.latent_prior.from_noise(noise)

    def _sample(self, n: int, draw: Draw, condition: Tensor | None) -> Tensor:
        """z from the prior, then pixels given z."""
        return self._pixels(self.prior(n, draw), condition, draw)

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """Draw one of `draw.particles` particles z by weight, then pixels given z."""
        b, p, t = len(x), draw.particles, draw.temperature
        where = moved(known, self.device)[:, None].expand_as(x)
        mean, log_var = self._filled(x, where, condition)
        from_prior = torch.arange(p, device=self.device) % 2 == 1  # one particle alone comes from the encoder
        noise = normal(b, p, self.latent_dim, device=self.device, generator=draw.generator).to(self.dtype)
        z = reparameterised(mean[:, None], log_var[:, None], noise)
        z = torch.where(from_prior[:, None], self.from_noise(math.sqrt(t) * noise), z)
        repeated = None if condition is None else condition.repeat_interleave(p, 0)
        each = self._log_likelihood(x.repeat_interleave(p, 0), z.flatten(0, 1), repeated, t).view(b, p, -1)
        counted = to_steps(where, self.step_channels).all(2)[:, None]
        prior = self.latent_prior.log_prob(z, t)
        share = from_prior.double().mean()
        q = log_normal(z, mean[:, None], log_var[:, None])
        proposal = torch.logaddexp(prior + share.log(), q + (1 - share).log())
        weights = ((each * counted).sum(2) + prior - proposal).double().softmax(1)
        number = uniform(b, 1, device=self.device, generator=draw.generator).to(self.dtype)
        chosen = (weights.cumsum(1) < number).sum(1).clamp(max=p - 1)
        drawn = self._pixels(z[torch.arange(b, device=z.device), chosen], condition, draw)
        return Completion(torch.where(where, x, drawn), 1 / weights.square().sum(1))

    def _filled(self, x: Tensor, where: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), (B, L) each, for images whose unknown values are filled in.

        They are filled in with their expectation given the mean of q, several times, starting from z = 0.
        """
        y = self.scaled(x)
        z = y.new_zeros(len(x), self.latent_dim)
        for _ in range(FILLS):
            mean, log_var = self._encoded(torch.where(where, y, self._expected(z, condition)), condition)
            z = mean
        return mean, log_var

    def _pixels(self, z: Tensor, condition: Tensor | None, draw: Draw) -> Tensor:
        """Latents (B, L) -> integers (B, C, H, W) from p(x | z) at the temperature of the draw."""
        pixels = self._given_z(z, condition, draw.temperature)
        shape = len(z), self.spec.dims // self.step_channels, self.head.noise_size
        noise = uniform(*shape, device=self.device, generator=draw.generator).to(self.dtype)
        return from_steps(pixels.sample(noise), self.spec)

    # ---- parts

    def _posterior(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Integers -> mean and log-variance of q(z | x), (B, L) each."""
        return self._encoded(self.scaled(x), condition)

    def _encoded(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] -> mean and log-variance of q."""
        parameters = self.encoder(y).to(self.dtype)
        if condition is not None:
            parameters = parameters + self.to_posterior(condition.mean((2, 3))).to(self.dtype)
        if self.bound.guesses:
            return parameters, self.log_var.expand_as(parameters)
        mean, log_var = parameters.chunk(2, 1)
        return mean, log_var.clamp(-15, 10)

    def _decoded(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Latents (B, L) -> features of every step (B, T, D)."""
        if condition is None:
            features: Tensor = self.decoder(z)
            return features.to(self.dtype)
        features = self.decoder(torch.cat([z, condition.mean((2, 3))], 1)).to(self.dtype)
        local = self.to_features(condition).expand(-1, -1, self.spec.height, self.spec.width)
        return features + local.permute(0, 2, 3, 1).reshape(len(z), -1, features.shape[2]).to(self.dtype)

    def _given_z(self, z: Tensor, condition: Tensor | None, temperature: float = 1.0) -> Any:
        """Latents (B, L) -> p(x | z) of every step (B, T), to the power 1 / temperature."""
        pixels = self.head(self._decoded(z, condition))
        return pixels if temperature == 1 else pixels.tempered(temperature)

    def _log_likelihood(self, x: Tensor, z: Tensor, condition: Tensor | None, temperature: float = 1.0) -> Tensor:
        """log p of every step of images (B, C, H, W) given z, nats (k B, T).

        `z` (k B, L): k latents for each image; the first one of every image, then the second ones, ….
        """
        k = len(z) // len(x)
        if k > 1:
            x = x.repeat(k, 1, 1, 1)
            condition = None if condition is None else condition.repeat(k, 1, 1, 1)
        nats: Tensor = self._given_z(z, condition, temperature).log_prob(to_steps(x, self.step_channels))
        return nats

    def _expected(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Latents (B, L) -> expected images (B, C, H, W) in [0, 1]."""
        mean = self._given_z(z, condition).mean()
        return from_steps(mean / (self.spec.levels - 1), self.spec).to(self.dtype)
