"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661): images without a likelihood.

    x = G(z, label), z ~ N(0, I);   a discriminator D(x, label) scores whether x looks real; G learns to get high scores

The images lie on a surface of at most L dimensions, so a given image has no probability: there is no `log_prob`. Both
players may get a class label, each through its own embedding. Losses: see `gan_losses.py`.

Completion is a search for the z whose image is nearest to the known pixels (Yeh et al. 2017, arXiv:1607.07539). That
paper adds the discriminator's loss to the distance. Ours keeps the length of z constant instead, so that z stays in the
region where the generator was trained. Without known pixels the gradient is zero, and the result is a sample.

The only distribution that is drawn from is that of z, so at a temperature T it is N(0, T I).

The players see images of real numbers in [-1, 1].

B images, L latent numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, ImageSpec, RequestError, nearest
from genlab.models.base import GenerativeModel
from genlab.models.gan_losses import LOSSES, gradient_penalty
from genlab.models.noise import normal
from genlab.system.device import moved

CONFIGURABLE = {"model": ("GAN",)}

STARTS, SEARCH_STEPS, SEARCH_RATE = 4, 100, 0.1  # of a completion: searches per image, steps of Adam, learning rate


class GAN(GenerativeModel):
    """A generator and a discriminator, the two players.

    `generator(spec=, latent_dim=, context=)`, `discriminator(spec=, context=)` and `context(spec=)` are constructors;
    each player gets its own network for the context. `critic_steps`: turns of the discriminator per generator turn.
    `penalty`: weight of the gradient penalty of loss=wgan_gp.
    """

    signed = True
    partly_trained = True  # tells DDP that each turn computes gradients of one player's weights only
    completion = (
        "approximate: the image nearest to the known pixels that a search over z finds, not a draw from a conditional "
        "distribution, which a GAN does not have"
    )

    def __init__(
        self,
        spec: ImageSpec,
        *,
        generator: Callable[..., nn.Module],
        discriminator: Callable[..., nn.Module],
        context: Callable[..., nn.Module] | None = None,
        latent_dim: int = 64,
        loss: str = "nonsaturating",
        penalty: float = 10.0,
        critic_steps: int = 1,
    ) -> None:
        super().__init__(spec)
        if latent_dim < 1 or critic_steps < 1 or penalty < 0:
            raise RequestError(
                "a GAN needs latent_dim and critic_steps of at least 1 and a penalty of at least 0, got "
                f"{latent_dim}, {critic_steps} and {penalty}"
            )
        if loss not in LOSSES:
            raise RequestError(f"model.loss={loss} is unknown; {nearest(loss, LOSSES)}")
        self.latent_dim, self.penalty, self.critic_steps = latent_dim, penalty, critic_steps
        self.loss = LOSSES[loss]
        parts = [None if context is None else context(spec=spec) for _ in range(2)]
        self.conditioning = "none" if parts[0] is None else str(parts[0].kind)
        if self.conditioning not in ("none", "label"):
            raise RequestError("a GAN is conditioned on a class label or on nothing: model/context=label or none")
        self.generator: Any = generator(spec=spec, latent_dim=latent_dim, context=parts[0])
        self.discriminator: Any = discriminator(spec=spec, context=parts[1])

    def turn(self, player: str, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Each (B,): the "loss" of the player, also as "generator_loss" or "discriminator_loss". For the discriminator
        also its scores of real and of fake images, and the gradient penalty.
        """
        label = self._condition(context, len(x))
        z = torch.randn(len(x), self.latent_dim, device=self.device, dtype=self.dtype)
        if player == "generator":
            score = self.discriminator(self.generator(z, label), label).to(self.dtype)
            loss = self.loss.generator(score)
            return {"loss": loss, "generator_loss": loss.detach()}
        real = self.scaled(x)
        with torch.no_grad():
            fake = self.generator(z, label).to(self.dtype)
        both = None if label is None else label.repeat(2)
        real_score, fake_score = self.discriminator(torch.cat([real, fake]), both).to(self.dtype).chunk(2)
        loss = self.loss.discriminator(real_score, fake_score)
        terms = {"real_score": real_score, "fake_score": fake_score}
        if self.loss.penalised:
            terms["gradient_penalty"] = gradient_penalty(lambda y: self.discriminator(y, label), real, fake)
            loss = loss + self.penalty * terms["gradient_penalty"]
        return {"loss": loss, "discriminator_loss": loss.detach(), **{k: v.detach() for k, v in terms.items()}}

    def prior(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """z (n, L) from N(0, T I) at temperature T. `keywords` are those of `Draw.of`."""
        draw = Draw.of(draw, **keywords)
        z = normal(n, self.latent_dim, device=self.device, generator=draw.generator)
        return draw.temperature**0.5 * z.to(self.dtype)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z (B, L) -> images (B, C, H, W) in [0, 1]."""
        y: Tensor = self.generator(z, self._condition(context, len(z)))
        return (y.to(self.dtype) + 1) / 2

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Output of the discriminator's convolutions, "block0" … (B, D, h, w) each; independent of the label."""
        self._condition(context, len(x))  # so that a missing label is an error here as everywhere
        maps = self.discriminator.maps(self.scaled(x))
        return {f"block{i}": each for i, each in enumerate(maps)}

    def _sample(self, n: int, draw: Draw, condition: Tensor | None) -> Tensor:
        """One pass of the generator."""
        return self.quantised(self.generator(self.prior(n, draw), condition))

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """G(z) for the best z of a few searches. There are no particles."""
        known = moved(known[:, None], self.device)
        z = self.prior(len(x) * STARTS, draw)
        target, mask = (tensor.repeat_interleave(STARTS, 0) for tensor in (self.scaled(x), known))
        labels = None if condition is None else condition.repeat_interleave(STARTS)
        images, distance = self._search(z, target, mask, labels)
        best = distance.view(len(x), STARTS).argmin(1)
        nearest_images = images.unflatten(0, (len(x), STARTS))[torch.arange(len(x), device=x.device), best]
        return Completion(torch.where(known, x, self.quantised(nearest_images)), None)

    def _search(self, z: Tensor, target: Tensor, mask: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Minimise the distance over z (B, L) at constant length; return `_distance` of the result."""
        length = z.norm(dim=1, keepdim=True)
        z = z.clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=SEARCH_RATE)
        for _ in range(SEARCH_STEPS):
            with torch.enable_grad():  # the caller has switched it off
                (z.grad,) = torch.autograd.grad(self._distance(z, target, mask, label)[1].sum(), z)
            adam.step()
            with torch.no_grad():
                z.mul_(length / z.norm(dim=1, keepdim=True))
        with torch.no_grad():
            return self._distance(z, target, mask, label)

    def _distance(self, z: Tensor, target: Tensor, mask: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """G(z) (B, C, H, W) and its squared distance (B,) from the target where the mask is True."""
        y = self.generator(z, label).to(self.dtype)
        return y, ((y - target) * mask).square().flatten(1).sum(1)
