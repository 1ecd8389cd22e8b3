"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661): images without a likelihood.

    x = G(z, label), z ~ N(0, I);     a discriminator D(x, label) scores how real x looks, and G is trained to please it

The images lie on a surface of at most L dimensions, so nothing can say how probable a given image is: no `log_prob`.
Both players may be told a class label, each through a context part of its own. Losses: see `gan_losses.py`.

Completion is a search for the z whose image is nearest to the known pixels (Yeh et al. 2017, arXiv:1607.07539). Ours
keeps z at the length that it was drawn with, where the generator has been trained, instead of asking the
discriminator; without a known pixel the search goes nowhere and the result is a sample.

To the players an image is real numbers in [-1, 1]: levels are scaled on the way in and rounded to on the way out.

B images, L latent numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, ImageSpec, RequestError, nearest
from genlab.models.conditioning import suited
from genlab.models.gan_losses import LOSSES, gradient_penalty
from genlab.system.device import moved, true_float32

STARTS, SEARCH_STEPS, SEARCH_RATE = 4, 100, 0.1  # of a completion: searches per image, steps of Adam, learning rate


class GAN(nn.Module):
    """Two players.

    `generator(spec=, latent_dim=, context=)`, `discriminator(spec=, context=)` and `context(spec=)`, of which each
    gets one, arrive unfinished. `critic_steps`: turns of the discriminator for one of the generator. `penalty`: weight
    of the gradient penalty of loss=wgan_gp.
    """

    partly_trained = True  # a turn gives the weights of one player a gradient, which DDP has to be told
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
        super().__init__()
        if latent_dim < 1 or critic_steps < 1 or penalty < 0:
            raise RequestError(
                "a GAN needs latent_dim and critic_steps of at least 1 and a penalty of at least 0, got "
                f"{latent_dim}, {critic_steps} and {penalty}"
            )
        if loss not in LOSSES:
            raise RequestError(f"model.loss={loss} is unknown; {nearest(loss, LOSSES)}")
        self.spec, self.latent_dim, self.penalty, self.critic_steps = spec, latent_dim, penalty, critic_steps
        self.loss = LOSSES[loss]
        parts = [None if context is None else context(spec=spec) for _ in range(2)]
        self.conditioning = "none" if parts[0] is None else str(parts[0].kind)
        if self.conditioning not in ("none", "label"):
            raise RequestError("a GAN is conditioned on a class label or on nothing: model/context=label or none")
        self.generator: Any = generator(spec=spec, latent_dim=latent_dim, context=parts[0])
        self.discriminator: Any = discriminator(spec=spec, context=parts[1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of losses also under autocast."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device

    def scaled(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> [-1, 1]."""
        self.spec.check(x)
        return x.to(self.dtype) * (2 / (self.spec.levels - 1)) - 1

    def quantised(self, y: Tensor) -> Tensor:
        """Images about [-1, 1] -> the nearest integers (B, C, H, W)."""
        top = self.spec.levels - 1
        return ((y.to(self.dtype) + 1) * (top / 2)).round().clamp(0, top).long()

    def turn(self, player: str, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Each (B,): "loss", which `player` descends, once more under the player's name; of the discriminator also its
        scores of real and fake images and the gradient penalty.
        """
        label = self._given(context, len(x))
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

    @torch.no_grad()
    @true_float32()
    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n images (n, C, H, W). The temperature scales z."""
        return self.quantised(self.generator(self.prior(n, temperature, generator), self._given(context, n)))

    def prior(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """z (n, L), normal numbers times the temperature, drawn where the generator lives."""
        device = self.device if generator is None else generator.device
        z = torch.randn(n, self.latent_dim, generator=generator, device=device)
        return temperature * moved(z, self.device).to(self.dtype)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z (B, L) -> images (B, C, H, W) in [0, 1]."""
        y: Tensor = self.generator(z, self._given(context, len(z)))
        return (y.to(self.dtype) + 1) / 2

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
        """Keep x (B, C, H, W) where known (B, H, W) is True; elsewhere G(z) of the best z of a few searches. Nothing is
        weighted, so there are 0 effective particles.
        """
        x, known = moved(x, self.device), moved(known[:, None], self.device)
        label = self._given(context, len(x))
        z = self.prior(len(x) * STARTS, temperature, generator)
        target, seen = (t.repeat_interleave(STARTS, 0) for t in (self.scaled(x), known))
        found, distance = self._search(z, target, seen, None if label is None else label.repeat_interleave(STARTS))
        best = distance.view(len(x), STARTS).argmin(1)
        filled = self.quantised(found.unflatten(0, (len(x), STARTS))[torch.arange(len(x), device=x.device), best])
        return Completion(torch.where(known, x.long(), filled), torch.zeros(len(x), device=x.device))

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """What the discriminator's convolutions make of the images, "block0" … each (B, D, h, w), label or not."""
        self._given(context, len(x))  # unused, but its absence would be a mistake elsewhere
        maps = self.discriminator.maps(self.scaled(x))
        return {f"block{i}": each for i, each in enumerate(maps)}

    def _search(self, z: Tensor, target: Tensor, seen: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """`_distance` of z (B, L) after it has been moved downhill at constant length."""
        length = z.norm(dim=1, keepdim=True)
        z = z.clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=SEARCH_RATE)
        for _ in range(SEARCH_STEPS):
            with torch.enable_grad():  # also where a caller has switched it off
                (z.grad,) = torch.autograd.grad(self._distance(z, target, seen, label)[1].sum(), z)
            adam.step()
            with torch.no_grad():
                z.mul_(length / z.norm(dim=1, keepdim=True))
        with torch.no_grad():
            return self._distance(z, target, seen, label)

    def _distance(self, z: Tensor, target: Tensor, seen: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """G(z) (B, C, H, W) and its squared distance (B,) from the target where that is seen."""
        y = self.generator(z, label).to(self.dtype)
        return y, ((y - target) * seen).square().flatten(1).sum(1)

    def _given(self, context: Tensor | None, batch: int) -> Tensor | None:
        """Labels (B,) where the model wants them."""
        context = suited(context, self.conditioning, batch)
        return None if context is None else moved(context, self.device)
