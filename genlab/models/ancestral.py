"""The ancestral loop of an autoregressive model: the values of every step are drawn given those of earlier steps.

After each step, known values replace the drawn ones. The loop goes row by row: the noise of a row is drawn at once. On
a GPU the steps of a row are captured as a CUDA graph if the same graph is valid for every row.

B images, T steps of c values, S = W * C / c steps in a row, D features; Z random numbers that a head needs for a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.core import Draw, ImageSpec, from_steps, to_steps
from genlab.models.noise import uniform
from genlab.system.device import moved


@dataclass(frozen=True)
class Known:
    """The known values of images, in generation order.

    `values` and `mask` (B, T, c) are on the model's device. `order` (B, T) is 1 for a known step. It is on the host,
    which uses it to plan all steps without waiting for the device. `rows`: number of rows at the top that are known in
    every image.
    """

    values: Tensor
    mask: Tensor
    order: Tensor
    rows: int

    @classmethod
    def of(cls, x: Tensor, known: Tensor, spec: ImageSpec, step_channels: int) -> Known:
        """The known values of images x (B, C, H, W), where the mask `known` (B, H, W) is True."""
        mask = to_steps(moved(known, x.device)[:, None].expand(x.shape), step_channels)
        order = to_steps(known.cpu()[:, None].expand(x.shape), step_channels)[..., 0].long()
        first_unknown = order.cummin(1).values.sum(1).min()
        return cls(to_steps(x, step_channels), mask, order, int(first_unknown) // (mask.shape[1] // spec.height))

    @property
    def late(self) -> Tensor:
        """Steps (B, T) that are known but come after an unknown one, on the host."""
        return self.order > self.order.cummin(1).values

    @property
    def ordered(self) -> bool:
        """True if no known step comes after an unknown one."""
        return not bool(self.late.any())


@dataclass(frozen=True)
class Generation:
    """The inputs of the ancestral loop and of the particle filter.

    `condition`: features of the context (B, E, h, w), or None.
    """

    net: Any
    head: Any
    spec: ImageSpec
    condition: Tensor | None
    draw: Draw

    @property
    def row_steps(self) -> int:
        """S, the number of steps in a row."""
        return self.spec.width * self.spec.channels // int(self.net.step_channels)

    def row_noise(self, n: int, device: torch.device) -> Tensor:
        """Uniform noise (S, n, Z) of a row."""
        return uniform(self.row_steps, n, self.head.noise_size, device=device, generator=self.draw.generator)

    def noise(self, n: int, rows: int, device: torch.device) -> Iterator[Tensor]:
        """Uniform noise (n, Z) of every step after `rows` rows, drawn a row at a time."""
        for _ in range(rows, self.spec.height):
            yield from self.row_noise(n, device)

    def tempered(self, pixels: Any) -> Any:
        """The distribution of a step at the temperature of the draw."""
        return pixels if self.draw.temperature == 1 else pixels.tempered(self.draw.temperature)


def clamped(generation: Generation, known: Known) -> Tensor:
    """Run the ancestral loop; known values replace drawn ones. Returns all values (B, T, c)."""
    n, device, row_steps = len(known.values), known.values.device, generation.row_steps
    prefix = from_steps(known.values, generation.spec), known.rows
    state = generation.net.start(n, device, prefix, generation.condition)
    out = known.values.clone()
    row = Row(generation, state, n, device)
    for number in range(known.rows, generation.spec.height):
        here = slice(number * row_steps, (number + 1) * row_steps)
        mask = known.mask[:, here] if known.order[:, here].any() else None
        out[:, here] = row(known.values[:, here], mask)
    return out


class Row:
    """One row of the ancestral loop."""

    def __init__(self, generation: Generation, state: Any, n: int, device: torch.device) -> None:
        self.generation, self.state, self.n, self.device = generation, state, n, device
        head, condition = generation.head, generation.condition
        self.head = head.for_steps() if hasattr(head, "for_steps") else head
        self.previous: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.static: tuple[Tensor, ...] = ()
        same_condition = condition is None or condition.shape[2] == 1  # a context image differs from row to row
        self.capture = device.type == "cuda" and generation.net.rows_alike and same_condition
        # Steps with a few microseconds of work run on one thread: several threads would mostly wait for each other, ten
        # times as long if another process uses one of the cores.
        self.serial_from = getattr(state, "serial_from", generation.row_steps)

    def __call__(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Known values and their mask (None without known values), (n, S, c) each -> the row's values (n, S, c)."""
        noise = self.generation.row_noise(self.n, self.device)
        if not self.capture or self.previous is None:  # the first row also warms up the kernels that the graph records
            row = self._steps(noise, values, mask, self.previous)
        else:
            mask = torch.zeros_like(values, dtype=torch.bool) if mask is None else mask  # one graph for both
            row = self._replay(noise, values, mask)
        self.previous = row[:, -1]
        return row

    def _steps(self, noise: Tensor, values: Tensor, mask: Tensor | None, previous: Tensor | None) -> Tensor:
        """Draw the row's values (n, S, c) step by step; `previous` (n, c) are those of the step before the row."""
        net, head, tempered, row = self.generation.net, self.head, self.generation.tempered, []
        threads = torch.get_num_threads()
        try:
            for s, noise_of_step in enumerate(noise.unbind()):
                if s == self.serial_from:
                    torch.set_num_threads(1)
                h, self.state = net.step(previous, self.state)
                previous = tempered(head(h)).sample(noise_of_step)
                if mask is not None:
                    previous = torch.where(mask[:, s], values[:, s], previous)
                row.append(previous)
        finally:
            torch.set_num_threads(threads)
        return torch.stack(row, 1)

    def _replay(self, noise: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """As `_steps`, by a CUDA graph that the first call records."""
        assert self.previous is not None
        inputs = noise, values, mask, self.previous
        if self.graph is None:
            self.static = tuple(tensor.clone() for tensor in inputs)
            self.graph = torch.cuda.CUDAGraph()
            # "thread_local": calls of other threads, such as NCCL's watchdog, do not end the capture.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.row = self._steps(*self.static)
        for buffer, tensor in zip(self.static, inputs, strict=True):
            buffer.copy_(tensor)
        self.graph.replay()
        return self.row.clone()
