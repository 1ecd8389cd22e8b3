"""Normalizing flows: an invertible map f from pixels to independent normal variables defines a density of the pixels.

    log p(y) = log N(f(y); 0, I) + log |det df/dy|,    P(x) = integral of p over the unit cell of x

Dinh et al. 2017 (arXiv:1605.08803), Kingma & Dhariwal 2018 (arXiv:1807.03039), Ho et al. 2019 (arXiv:1902.00275). An
integer image is a cell of real images, so a flow bounds its probability: `log_prob` is one draw of a log-weight
log p(x + u) / q(u | x), whose exponential has the mean P(x) (flows/dequantise.py). `exact` is True if no layer draws
noise.

Sampling takes one pass of the inverse, whose real values are rounded down into 0..K-1. The only distribution that is
drawn from is that of z, so at a temperature T it is N(0, T I).

B images, D latents (one for each value of the image, and for the noise that makes odd sizes even).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, ImageSpec
from genlab.models.base import GenerativeModel
from genlab.models.langevin import langevin_dynamics
from genlab.models.noise import normal
from genlab.system.device import moved

CONFIGURABLE = {"model": ("Flow",)}

LANGEVIN_STEPS = 200  # of a completion


class Flow(GenerativeModel):
    """Dequantisation, a map from the range of pixels to all real numbers (`squash`), and an invertible map (`flow`).

    `dequantisation(shape=, levels=)`, `squash(levels=)`, `flow(shape, coupling=, context_width=)`, `coupling(net=)`,
    `net` and `context(spec=)` are constructors; genlab/flows describes them.
    """

    completion = (
        f"approximate: {LANGEVIN_STEPS} Langevin steps through the latents lead to images that nearly agree with the "
        "known pixels, which are then put in place"
    )

    def __init__(
        self,
        spec: ImageSpec,
        *,
        dequantisation: Callable[..., nn.Module],
        squash: Callable[..., nn.Module],
        flow: Callable[..., nn.Module],
        coupling: Callable[..., nn.Module],
        net: Callable[..., nn.Module],
        context: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__(spec, context)
        self.dequantisation: Any = dequantisation(shape=spec.shape, levels=spec.levels)
        self.squash: Any = squash(levels=spec.levels)
        width = getattr(self.context, "width", 0)
        self.flow: Any = flow(spec.shape, coupling=partial(coupling, net=net), context_width=width)

    @property
    def exact(self) -> bool:
        """True if no layer draws noise."""
        return all(bool(part.exact) for part in (self.dequantisation, self.squash, self.flow))

    def networks(self) -> list[nn.Module]:
        """The nets of all couplings, which take most of the time and can be compiled. The layers between them
        cannot, because their code reads the dimensions of tensors.
        """
        nets = (getattr(part, name, None) for part in self.modules() for name in ("net", "look"))
        return [net for net in nets if isinstance(net, nn.Module)]

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> one draw of a log-weight, nats (B,). Noise comes from torch's global generator."""
        self.spec.check(x)
        y, log_weight = self.dequantisation(x.to(self.dtype))
        return log_weight + self.log_density(y, context)

    def log_density(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Reals (B, C, H, W) inside (0, K) -> log p(y), nats (B,), in units of a level; one draw if the flow pads."""
        z, log_det = self._latents(y, context)
        return log_det + torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(1)

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative bound in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    @torch.no_grad()
    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Output of each level, "level0" … (B, C, h, w), and "latents" (B, D), for the middle of the image's cell."""
        self.spec.check(x)
        features: dict[str, Tensor] = {}
        hooks = [
            level.register_forward_hook(lambda _, __, out, name=f"level{i}": features.__setitem__(name, out[0]))
            for i, level in enumerate(self.flow.levels)
        ]
        devices = [x.device] if x.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # the noise beyond the edge of odd sizes is the same at every call
                torch.manual_seed(0)
                features["latents"], _ = self._latents(x.to(self.dtype) + 0.5, context)
        finally:
            for hook in hooks:
                hook.remove()
        return features

    def prior(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """z (n, D) from N(0, T I) at temperature T. `keywords` are those of `Draw.of`."""
        draw = Draw.of(draw, **keywords)
        z = normal(n, int(self.flow.dims), device=self.device, generator=draw.generator, dtype=self.dtype)
        return draw.temperature**0.5 * z

    @torch.no_grad()
    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z (B, D) -> images (B, C, H, W) in [0, 1]."""
        return self._image(z, self._condition(context, len(z))).to(z.dtype) / (self.spec.levels - 1)

    def _sample(self, n: int, draw: Draw, condition: Tensor | None) -> Tensor:
        """One pass of the inverse."""
        return self._image(self.prior(n, draw), condition)

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """Langevin dynamics of z, without particles.

        The misfit of a value is its distance from the cell of the known one, measured after squashing, where the cells
        of black and white are half lines.
        """
        known = moved(known, self.device)[:, None].expand_as(x)
        cells = x.to(self.dtype)
        low, high = (self.squash(edge)[0] for edge in (cells, cells + 1))

        def misfit(z: Tensor) -> Tensor:
            v = self.flow.inverse(z, condition)
            return torch.where(known, (low - v).relu() + (v - high).relu(), 0)

        z = langevin_dynamics(
            self.prior(len(x), draw),
            misfit,
            steps=LANGEVIN_STEPS,
            temperature=draw.temperature,
            generator=draw.generator,
        )
        return Completion(torch.where(known, x, self._image(z, condition)), None)

    def _latents(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) inside (0, K) -> z (B, D) and the log-determinant (B,)."""
        v, log_scale = self.squash(y)
        z, log_det = self.flow(v, self._condition(context, len(y)))
        return z, log_scale + log_det

    def _image(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """z (B, D) -> integers (B, C, H, W)."""
        y = self.squash.inverse(self.flow.inverse(z, condition))
        image: Tensor = self.dequantisation.inverse(y).long()
        return image
