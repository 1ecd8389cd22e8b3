"""Autoregressive models: p(x) = prod_t p(x_t | x_<t), exact, for any causal net and any head.

A net turns an image into features of every step that depend on earlier steps alone; a head turns the features of a
step into the distribution of its values. Training and likelihood take one forward pass; sampling takes a step for each
value, from the net's cache. Sampling is completion of nothing, so there is one ancestral loop.

Completion. Clamping known pixels in that loop conditions only on earlier ones: exact when the known pixels come first
in the generation order, wrong otherwise. Elsewhere `particles` copies run side by side: at a known pixel each copy is
weighted by the probability it gave to it, copies are resampled when few of them carry the weight, and one is drawn at
the end (a particle filter, Gordon et al. 1993). It tends to the exact conditional as `particles` grows; the smallest
effective number of particles, (sum w)^2 / sum w^2, is returned beside the images.

T steps of c values; a row has S = W * C / c of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from genlab.core import Completion, Filters, ImageSpec, RequestError, from_steps, to_steps
from genlab.models.conditioning import suited
from genlab.system.device import moved, true_float32


class Autoregressive(nn.Module):
    """A causal net and a head, and perhaps a context part.

    `net(spec=, context_width=, chained=)`, `head(width=, channels=, levels=)`, `context(spec=)` arrive unfinished.
    """

    exact = True
    completion = "ordered"

    def __init__(
        self,
        spec: ImageSpec,
        *,
        net: Callable[..., nn.Module],
        head: Callable[..., nn.Module],
        context: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if head is None:
            raise RequestError("an autoregressive model needs a model/head= other than none: it is p(x_t | x_<t)")
        self.spec = spec
        self.context = None if context is None else context(spec=spec)
        self.conditioning = "none" if self.context is None else str(self.context.kind)
        chained = getattr(getattr(head, "func", head), "chains_colours", False)  # a partial asks its class
        self.net = net(spec=spec, context_width=getattr(self.context, "width", 0), chained=chained)
        self.head = head(width=self.net.out_width, channels=self.net.step_channels, levels=spec.levels)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integer images (B, C, H, W) -> nats (B,), exact."""
        self.spec.check(x)
        return self.head(self.net(x, self._given(context, len(x)))).log_prob(to_steps(x, self._step_channels)).sum(1)

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Negative log-likelihood in nats, "loss" (B,)."""
        return {"loss": -self.log_prob(x, context)}

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Output of every block of the net, "block0" … each (B, D, H, W) or (B, T, D)."""
        found: dict[str, Tensor] = {}

        def last(out: Tensor | tuple[Tensor, ...]) -> Tensor:  # of several streams, the one that sees the most
            return out[-1] if isinstance(out, tuple) else out

        hooks = [
            block.register_forward_hook(lambda _, __, out, name=f"block{i}": found.__setitem__(name, last(out)))
            for i, block in enumerate(self.net.blocks)  # type: ignore[arg-type]
        ]
        try:
            self.net(x, self._given(context, len(x)))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def filters(self) -> Tensor | None:
        """What the net's first layer makes of each pixel around, (N, C, h, w), if that is a picture."""
        found: Tensor | None = self.net.filters() if isinstance(self.net, Filters) else None
        return found

    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n images (n, C, H, W). At a temperature, every conditional is p^(1/temperature), normalised."""
        x = torch.zeros(n, *self.spec.shape, dtype=torch.long, device=self._device)
        known = torch.zeros(n, *self.spec.shape[1:], dtype=torch.bool, device=self._device)
        return self.complete(x, known, context=context, temperature=temperature, generator=generator).images

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
        """Keep x (B, C, H, W) where known (B, H, W) is True, draw the rest given it. Exact for a known prefix."""
        self.spec.check(x)
        given = to_steps(moved(x, self._device).long(), self._step_channels)
        fixed = to_steps(moved(known, self._device)[:, None].expand(x.shape), self._step_channels)  # (B, T, c)
        # Where nothing or something is known decides what is done, so the host has to know: here, once for all steps.
        order = to_steps(known.cpu()[:, None].expand(x.shape), self._step_channels)[..., 0].long()
        # Known steps after an unknown one: only then do the particles differ in weight.
        weigh = bool((order.cummin(1).values < order).any())
        rows = int(order.cummin(1).values.sum(1).min()) // self._row_steps
        with torch.inference_mode():
            features = self._given(context, len(x))
            if not weigh:
                steps = self._clamp(given, fixed, order, rows, features, temperature, generator)
                effective = torch.ones(len(x), device=self._device)
            else:
                steps, effective = self._filter(given, fixed, order, rows, features, particles, temperature, generator)
        # A clone outside inference mode is an ordinary tensor, which the caller may change.
        return Completion(from_steps(steps, self.spec).clone(), effective.clone())

    def _given(self, context: Tensor | None, batch: int) -> Tensor | None:
        """Labels (B,) or images (B, C', H', W') -> features (B, E, h, w); None for an unconditional model."""
        context = suited(context, self.conditioning, batch)
        return None if context is None else self.context(moved(context, self._device))  # type: ignore[misc]

    def _clamp(
        self,
        given: Tensor,
        fixed: Tensor,
        order: Tensor,
        rows: int,
        features: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The ancestral loop with known values put in place: (B, T, c). `order` (B, T): what is known, on the host."""
        known = from_steps(given, self.spec), rows
        state = self.net.start(len(given), self._device, known, features)  # type: ignore[operator]
        out = given.clone()
        run = Row(self, state, len(given), features, temperature, generator)
        for row in range(rows, self.spec.height):
            here = slice(row * self._row_steps, (row + 1) * self._row_steps)
            out[:, here] = run(given[:, here], fixed[:, here] if order[:, here].any() else None)
        return out

    def _filter(
        self,
        given: Tensor,
        fixed: Tensor,
        order: Tensor,
        rows: int,
        features: Tensor | None,
        particles: int,
        temperature: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """The ancestral loop with weighted particles: (B, T, c) and the smallest effective number of particles (B,)."""
        batch = len(given)
        out, fixed = given.repeat_interleave(particles, 0), fixed.repeat_interleave(particles, 0)
        features = None if features is None else features.repeat_interleave(particles, 0)
        known = from_steps(out, self.spec), rows
        state = self.net.start(len(out), self._device, known, features)  # type: ignore[operator]
        log_w = torch.zeros(batch, particles, dtype=torch.double, device=self._device)
        smallest = torch.full((batch,), float(particles), dtype=torch.double, device=self._device)
        # Before its first unknown step all copies of an image are equal: known steps after that tell them apart.
        weighed = (order > order.cummin(1).values).T
        counts = moved(weighed.repeat_interleave(particles, 1), self._device)
        previous = None
        for t, noise in enumerate(self._noise(len(out), rows, generator), rows * self._row_steps):
            h, state = self.net.step(previous, state)  # type: ignore[operator]
            pixels = self.head(h)
            pixels = pixels if temperature == 1 else pixels.tempered(temperature)
            previous = out[:, t] = torch.where(fixed[:, t], out[:, t], pixels.sample(noise))
            if weighed[t].any():
                log_w += torch.where(counts[t], pixels.log_prob(previous).double(), 0).view(batch, particles)
                effective = log_w.softmax(1).square().sum(1).reciprocal()
                smallest = torch.minimum(smallest, effective)
                few = effective < particles / 2
                if few.any():  # a look at the device, cheaper than to copy the whole state for nothing
                    index = self._resample(log_w, few, generator)
                    out, previous = out[index], previous[index]
                    state.reorder(index)
        index = self._draw(log_w.softmax(1), 1, generator)[:, 0]
        return out.view(batch, particles, *out.shape[1:])[torch.arange(batch, device=self._device), index], smallest

    def _resample(self, log_w: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
        """Redraw the particles of the images `which` by weight, reset their weights; -> index into all copies."""
        batch, particles = log_w.shape
        keep = torch.arange(particles, device=log_w.device).expand(batch, -1)
        chosen = torch.where(which[:, None], self._draw(log_w.softmax(1), particles, generator), keep)
        log_w.masked_fill_(which[:, None], 0)
        return (chosen + torch.arange(batch, device=log_w.device)[:, None] * particles).flatten()

    def _draw(self, weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """n indices for each row of weights (B, P), systematically (one uniform a row): (B, n)."""
        start = torch.rand(len(weights), 1, dtype=weights.dtype, generator=generator, device=_home(generator, weights))
        points = (moved(start, weights.device) + torch.arange(n, device=weights.device)) / n
        cdf = weights.cumsum(1)
        return torch.searchsorted(cdf, points * cdf[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)

    def _noise(self, n: int, rows: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Uniform noise (n, z) of every step after `rows` rows, a row at a time."""
        for _ in range(rows, self.spec.height):
            yield from self._row_noise(n, generator)

    def _row_noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        """(S, n, z). Drawn where the generator lives, so that a seed gives the same noise on every device."""
        shape = self._row_steps, n, self.head.noise_size
        return moved(torch.rand(shape, generator=generator, device=_home(generator, self)), self._device)  # type: ignore[arg-type]

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _step_channels(self) -> int:
        return self.net.step_channels  # type: ignore[return-value]

    @property
    def _row_steps(self) -> int:
        return self.spec.width * self.spec.channels // self._step_channels


class Row:
    """One row of the ancestral loop. On a GPU its steps are captured as a graph when they serve every row."""

    def __init__(
        self,
        model: Autoregressive,
        state: object,
        n: int,
        features: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.state, self.n = model, state, n
        self.temperature, self.generator = temperature, generator
        self.head = model.head.for_steps() if hasattr(model.head, "for_steps") else model.head  # type: ignore[operator]
        self.previous: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.static: tuple[Tensor, ...] = ()
        same = features is None or features.shape[2] == 1  # a context with places differs from row to row
        self.capture = model._device.type == "cuda" and model.net.rows_alike and same
        # Threads that share a few microseconds of work mostly wait, tenfold when another process holds a core.
        self.serial_from = getattr(state, "serial_from", model._row_steps)

    def __call__(self, given: Tensor, fixed: Tensor | None) -> Tensor:
        """Known values (n, S, c) and where they are known, None for nowhere -> the row's values (n, S, c)."""
        noise = self.model._row_noise(self.n, self.generator)
        if not self.capture or self.previous is None:  # the first row also warms up what the graph will record
            values = self._steps(noise, given, fixed, self.previous)
        else:
            fixed = torch.zeros_like(given, dtype=torch.bool) if fixed is None else fixed  # one graph for both
            values = self._replay(noise, given, fixed)
        self.previous = values[:, -1]
        return values

    def _steps(self, noise: Tensor, given: Tensor, fixed: Tensor | None, previous: Tensor | None) -> Tensor:
        net, head, values = self.model.net, self.head, []
        threads = torch.get_num_threads()
        try:
            for s, uniform in enumerate(noise.unbind()):
                if s == self.serial_from:
                    torch.set_num_threads(1)
                h, self.state = net.step(previous, self.state)  # type: ignore[operator]
                pixels = head(h)
                if self.temperature != 1:
                    pixels = pixels.tempered(self.temperature)
                previous = pixels.sample(uniform)
                if fixed is not None:
                    previous = torch.where(fixed[:, s], given[:, s], previous)
                values.append(previous)
        finally:
            torch.set_num_threads(threads)
        return torch.stack(values, 1)

    def _replay(self, noise: Tensor, given: Tensor, fixed: Tensor) -> Tensor:
        inputs = noise, given, fixed, self.previous
        if self.graph is None:
            self.static = tuple(x.clone() for x in inputs)  # type: ignore[union-attr]
            self.graph = torch.cuda.CUDAGraph()
            # Other threads' calls, such as those with which NCCL watches over its own, do not end the capture.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.values = self._steps(*self.static)
        for buffer, value in zip(self.static, inputs, strict=True):
            buffer.copy_(value)  # type: ignore[arg-type]
        self.graph.replay()
        return self.values.clone()


def _home(generator: torch.Generator | None, where: nn.Module | Tensor) -> torch.device:
    """The device to draw on: the generator's, or that of the tensors."""
    if generator is not None:
        return generator.device
    return where.device if isinstance(where, Tensor) else next(where.parameters()).device
