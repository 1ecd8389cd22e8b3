"""Normalizing flows: an invertible map f from pixels to independent normal numbers is a density of the pixels.

    log p(y) = log N(f(y); 0, I) + log |det df/dy|,    P(x) = integral of p over the bin of x

Dinh et al. 2017 (arXiv:1605.08803), Kingma & Dhariwal 2018 (arXiv:1807.03039), Ho et al. 2019 (arXiv:1902.00275). An
image is a box of real images, so what a flow says of an image is a bound: one draw of a log-weight
log p(x + u) / q(u | x) whose exponential has the mean P(x) (flows/dequantise.py). `exact` is what the layers say.

Sampling takes one pass of the inverse: pixels are rounded down into 0..K-1. `temperature` T scales the deviation of
the normal numbers (N(0, T^2 I)), which is not p^(1/T).

B images, D latents (those of the image, and of the noise that makes odd sizes even).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from genlab.core import Completion, ImageSpec
from genlab.models.conditioning import suited
from genlab.models.langevin import walk
from genlab.system.device import moved, true_float32

WALK = 200  # steps of a completion


class Flow(nn.Module):
    """Dequantisation, a squashing to the whole line, and an invertible map.

    `dequantisation(shape=, levels=)`, `squash(levels=)`, `flow(shape, coupling=, context_width=)`, `coupling(net=)`,
    `net` and `context(spec=)` arrive unfinished; what they are is said in genlab/flows.
    """

    completion = (
        f"approximate: {WALK} Langevin steps through the latents lead to images that nearly agree with the known "
        "pixels, which are then put in place"
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
        super().__init__()
        self.spec = spec
        self.context = None if context is None else context(spec=spec)
        self.conditioning = "none" if self.context is None else str(self.context.kind)
        self.dequantisation = dequantisation(shape=spec.shape, levels=spec.levels)
        self.squash = squash(levels=spec.levels)
        width = getattr(self.context, "width", 0)
        self.flow = flow(spec.shape, coupling=partial(coupling, net=net), context_width=width)

    @property
    def exact(self) -> bool:
        """Whether no layer draws noise."""
        return all(bool(part.exact) for part in (self.dequantisation, self.squash, self.flow))

    def networks(self) -> list[nn.Module]:
        """The nets of all couplings, in which the time goes; the flow between them asks its layers where they stand."""
        nets = (getattr(part, name, None) for part in self.modules() for name in ("net", "look"))
        return [net for net in nets if isinstance(net, nn.Module)]

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> one draw of a log-weight, nats (B,). Noise from torch's global generator."""
        self.spec.check(x)
        y, log_weight = self.dequantisation(x.to(self._dtype))
        return log_weight + self.log_density(y, context)

    def log_density(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Reals (B, C, H, W) inside (0, K) -> log p(y) in nats (B,), per unit of a level; one draw if the flow pads."""
        z, log_det = self._latents(y, context)
        return log_det + torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(1)

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative bound in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    @torch.no_grad()
    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Of the middle of an image's box: what each level makes of it, "level0" … (B, C, h, w); "latents" (B, D)."""
        self.spec.check(x)
        found: dict[str, Tensor] = {}
        hooks = [
            level.register_forward_hook(lambda _, __, out, name=f"level{i}": found.__setitem__(name, out[0]))
            for i, level in enumerate(self.flow.levels)  # type: ignore[arg-type]
        ]
        devices = [x.device] if x.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # the noise beyond the edge of odd sizes is the same at every call
                torch.manual_seed(0)
                found["latents"], _ = self._latents(x.to(self._dtype) + 0.5, context)
        finally:
            for hook in hooks:
                hook.remove()
        return found

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
        """n images (n, C, H, W), integers. `temperature` scales the deviation of the latents."""
        return self._image(self.prior(n, temperature, generator), self._given(context, n))

    def prior(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """z (n, D), normal numbers times the temperature, drawn where the generator lives."""
        home = self._device if generator is None else generator.device
        z = torch.randn(n, int(self.flow.dims), generator=generator, device=home, dtype=self._dtype)  # type: ignore[arg-type]
        return temperature * moved(z, self._device)

    @torch.no_grad()
    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z (B, D) -> images (B, C, H, W) in [0, 1]."""
        return self._image(z, self._given(context, len(z))).to(z.dtype) / (self.spec.levels - 1)

    @torch.no_grad()
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
        """Keep x (B, C, H, W) where known (B, H, W) is True. Approximate; there are no particles.

        How far a value is from the known one's bin is measured after squashing, where black and white are half lines.
        """
        self.spec.check(x)
        features = self._given(context, len(x))
        x, known = moved(x, self._device), moved(known, self._device)[:, None].expand_as(x)
        bins = x.to(self._dtype)
        low, high = (self.squash(edge)[0] for edge in (bins, bins + 1))  # type: ignore[operator]

        def miss(z: Tensor) -> Tensor:
            v = self.flow.inverse(z, features)  # type: ignore[operator]
            return torch.where(known, (low - v).relu() + (v - high).relu(), 0)

        z = walk(
            self.prior(len(x), temperature, generator), miss,
            steps=WALK, temperature=temperature, generator=generator,
        )  # fmt: skip
        drawn = self._image(z, features)
        return Completion(torch.where(known, x.long(), drawn), torch.ones(len(x), dtype=torch.double, device=x.device))

    def _latents(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) inside (0, K) -> z (B, D) and the log-determinant (B,)."""
        v, log_scale = self.squash(y)
        z, log_det = self.flow(v, self._given(context, len(y)))
        return z, log_scale + log_det

    def _image(self, z: Tensor, features: Tensor | None) -> Tensor:
        """z (B, D) -> integers (B, C, H, W)."""
        y = self.squash.inverse(self.flow.inverse(z, features))  # type: ignore[operator]
        return self.dequantisation.inverse(y).long()  # type: ignore[operator]

    def _given(self, context: Tensor | None, batch: int) -> Tensor | None:
        """Labels (B,) or images (B, C', H', W') -> features (B, E, h, w); None for an unconditional model."""
        context = suited(context, self.conditioning, batch)
        return None if context is None else self.context(moved(context, self._device))  # type: ignore[misc]

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
