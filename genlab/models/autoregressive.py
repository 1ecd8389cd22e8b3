"""Autoregressive models: p(x) = prod_t p(x_t | x_<t), exact, for any causal net and any head.

A net turns an image into features of every step that depend on earlier steps only. A head turns the features of a
step into the distribution of its values. Training and likelihood take one forward pass; sampling takes one step of the
net's cache for each value (`ancestral.py`).

Completion draws the unknown values and keeps the known ones. This conditions a value on earlier values only. So it is
exact if the known pixels come first in the generation order. If they do not, weighted particles are used
(`particles.py`). Sampling is completion without known pixels, so one ancestral loop does both.

At a temperature T, every conditional p(x_t | x_<t) becomes p^(1/T), normalised.

B images, T steps of c values, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, Filters, ImageSpec, RequestError, declared, from_steps, to_steps
from genlab.models.ancestral import Generation, Known, clamped
from genlab.models.base import GenerativeModel
from genlab.models.neighbours import Neighbours, Predicting, WithNeighbours
from genlab.models.particles import weighted
from genlab.system.device import true_float32

CONFIGURABLE = {"model": ("Autoregressive",), "prior": ("Autoregressive",)}


class Autoregressive(GenerativeModel):
    """A causal net and a head, and optionally a network for the context.

    `net(spec=, context_width=, chained=)`, `head(width=, channels=, levels=)` and `context(spec=)` are constructors.
    `neighbours`: the head also reads the intensities of neighbouring pixels (`neighbours.py`).
    """

    exact = True
    completion = "ordered"

    def __init__(
        self,
        spec: ImageSpec,
        *,
        net: Callable[..., Any],
        head: Callable[..., nn.Module],
        context: Callable[..., nn.Module] | None = None,
        neighbours: bool = False,
    ) -> None:
        if head is None:
            raise RequestError("an autoregressive model needs a model/head= other than none: it is p(x_t | x_<t)")
        super().__init__(spec, context)
        chained = declared(head, "chains_colours")
        self.net: Any = net(spec=spec, context_width=getattr(self.context, "width", 0), chained=chained)
        near = Neighbours(spec, self.net.step_channels) if neighbours else None
        width = self.net.out_width + (near.width if near else 0)
        self.neighbours = near
        self.head: Any = head(width=width, channels=self.net.step_channels, levels=spec.levels)
        if near and isinstance(self.head, Predicting):
            self.head.predict(near.prediction())

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W) -> nats (B,), exact."""
        return self._step_log_prob(x, context).sum(1)

    def pixel_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W) -> log p of every pixel given the earlier ones, nats (B, H, W)."""
        return self._step_log_prob(x, context).view(len(x), self.spec.height, self.spec.width, -1).sum(3)

    def _step_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Integer images (B, C, H, W) -> log p of every step given the earlier ones, nats (B, T)."""
        self.spec.check(x)
        h = self.net(x, self._condition(context, len(x)))
        if self.neighbours is not None:
            h = torch.cat([h, self.neighbours(x, self.dtype)], -1)
        pixels = self.head(h)
        nats: Tensor = pixels.log_prob(to_steps(x, self.net.step_channels))
        return nats

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative log-likelihood in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Output of every block of the net, "block0" …, each (B, D, H, W) or (B, T, D)."""
        features: dict[str, Tensor] = {}

        def last(out: Tensor | tuple[Tensor, ...]) -> Tensor:  # the last of several streams sees the most pixels
            return out[-1] if isinstance(out, tuple) else out

        hooks = [
            block.register_forward_hook(lambda _, __, out, name=f"block{i}": features.__setitem__(name, last(out)))
            for i, block in enumerate(self.net.blocks)
        ]
        try:
            self.net(x, self._condition(context, len(x)))
        finally:
            for hook in hooks:
                hook.remove()
        return features

    def filters(self) -> Tensor | None:
        """Weights of the net's first layer as images (N, C, h, w); None if they are not pictures."""
        return self.net.filters() if isinstance(self.net, Filters) else None

    @torch.no_grad()
    def walk(self, n: int, choose: Callable[[Any, list[Tensor]], Tensor], context: Tensor | None = None) -> Tensor:
        """n images (n, C, H, W), value by value. `choose` gets the distribution of a step, as the head returns it for
        features (n, D), and the values of this step so far, (n,) each; it returns the next value, integers (n,).
        """
        head = self.head.for_steps() if hasattr(self.head, "for_steps") else self.head
        condition = self._condition(context, n)
        with torch.inference_mode(), true_float32():
            net = self._steps
            state = net.start(n, self.device, None, condition)
            previous, steps = None, []
            for _ in range(self.spec.dims // self.net.step_channels):
                h, state = net.step(previous, state)
                pixels, values = head(h), list[Tensor]()
                for _ in range(self.net.step_channels):
                    values.append(choose(pixels, values))
                previous = torch.stack(values, -1)
                steps.append(previous)
        return from_steps(torch.stack(steps, 1), self.spec).clone()

    @property
    def _steps(self) -> Any:
        """What generation takes its steps from: the net, or the net with neighbours."""
        return WithNeighbours(self.net, self.neighbours) if self.neighbours else self.net

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        known_values = Known.of(x, known, self.spec, self.net.step_channels)
        effective = None
        with torch.inference_mode():
            generation = Generation(self._steps, self.head, self.spec, condition, draw)
            if known_values.ordered:
                steps = clamped(generation, known_values)
            else:
                steps, effective = weighted(generation, known_values)
        # A clone made outside of inference mode is an ordinary tensor, which the caller may change.
        return Completion(from_steps(steps, self.spec).clone(), None if effective is None else effective.clone())
