"""What all caches share. A cache samples one generation step from what it keeps of the steps before.

Source of the idea: Ramachandran et al. 2017 (arXiv:1704.06001), who keep the activations that later pixels read. Ours
differs: whatever the rows above contribute enters once a row, as products over all pixels of the row (and often all
layers). At a pixel only the current row is left, as in-place operations on buffers that are allocated once.

Python is the main cost where a net is narrow. So all views of the buffers that a step uses are made once, at the start.

B images, C channels, W columns, G colours that take turns at a pixel (1 if a step is a whole pixel), c = C / G values
of a step, E numbers that the net reads for a value, D features of a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genlab.nets.causal.recompute import Prefix, Recompute
from genlab.nets.layers.context import LayerBiases
from genlab.nets.layers.masked import MaskedConv2d, group_slices
from genlab.system.device import moved


def bind(net: type[Recompute], cache: type[Cache]) -> None:
    """Make the nets of a class and of its subclasses sample from a cache. `Recompute.start` and `.step` stay slow."""

    @torch.no_grad()
    def start(
        self: Recompute, batch: int, device: torch.device, prefix: Prefix = None, context: Tensor | None = None
    ) -> Cache:
        return cache(self, batch, device, prefix, context)

    def step(self: Recompute, previous: Tensor | None, state: Cache) -> tuple[Tensor, Cache]:
        return state.step(previous), state

    net.start, net.step, net.rows_alike = start, step, cache.rows_alike  # type: ignore[method-assign, assignment]


class ContextRows:
    """What a context (B, E', h, w) adds to the layers of a net, a row at a time. A label has h = w = 1 for all rows."""

    def __init__(self, biases: LayerBiases, context: Tensor | None) -> None:
        biases.check(context)
        self.biases, self.context = biases, context
        self.row: int | None = None  # the row that `maps` belongs to
        self.maps: list[Tensor] = []

    def at(self, row: int) -> list[Tensor] | None:
        """For every layer what is added to that row, (w, B, D) with w = W or 1; None without a context."""
        if self.context is None:
            return None
        row = min(row, self.context.shape[2] - 1)
        if row != self.row:
            maps = self.biases(self.context[:, :, row : row + 1])
            self.maps, self.row = [m[:, :, 0].permute(2, 0, 1) for m in maps], row
        return self.maps

    def until(self, rows: int) -> list[Tensor | None]:
        """For every layer what is added to the first rows, (B, D, `rows` or 1, w), or None without a context."""
        return self.biases(None if self.context is None else self.context[:, :, :rows])  # type: ignore[no-any-return]

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index`."""
        if self.context is not None:
            self.context, self.row = self.context[index], None


class Cache(ABC):
    """The state of sampling from a net with `spec`, `step_channels`, `values` and `biases`. It changes in place.

    The cache of a net fills in the abstract methods, and `colour_steps` or `make_steps`. Use it under `torch.no_grad`
    or `inference_mode`.

    `t`: the step to come. `serial_from`: the step of a row from which one CPU thread does as well as several: 0, 1
    (when the work that is done once a row is worth sharing) or the number of steps (when every step is).
    """

    rows_alike = False  # True if the operations are the same in every row: a row can then be captured as a CUDA graph
    colour_steps: type[Any]  # `colour_steps(cache, colour).run(column)` is a step, unless `make_steps` is overridden
    net: Any
    inputs: list[Tensor]  # for each step of a row, where its values belong, as the net reads them: (B, c E)

    def __init__(
        self, net: Any, batch: int, device: torch.device, prefix: Prefix = None, context: Tensor | None = None
    ) -> None:
        """State before the first step. `prefix` (images (B, C, H, W), rows): before the first step after those rows."""
        self.net, self.batch, self.device, self.dtype = net, batch, device, next(net.parameters()).dtype
        self.t, self.columns, self.channels = 0, net.spec.width, net.values.channels
        self.colours = net.spec.channels // net.step_channels
        self.step_width = self.channels // self.colours  # c E
        self.row_steps = self.columns * self.colours
        self.buffers: list[tuple[int, Tensor]] = []
        self.contexts = self.read_context(context)
        self.allocate()
        by_colour = [self.make_steps(colour) for colour in range(self.colours)]
        self.steps = [step for pixel in zip(*by_colour, strict=True) for step in pixel]
        # Measured on 2 idle cores: a product of 4 million multiply-adds gains nothing, a row of 80 million a twelfth.
        of_step, of_row = self.work()
        shared = device.type != "cpu" or of_step > 2**22
        self.serial_from = self.row_steps if shared else int(of_row > 2**27)
        if prefix is not None and prefix[1] > 0:
            x, rows = prefix
            self.prefill(x[:, :, :rows])
            self.t = rows * self.row_steps

    @abstractmethod
    def allocate(self) -> None:
        """Make the buffers, the weights of what is done once a row, and `inputs`."""

    def make_steps(self, colour: int) -> list[Any]:
        """A colour's steps, one for each of the W columns: functions, or what an own `compute` carries out.

        They hold views and weights, never the cache: in a cycle its memory would wait for the garbage collector.
        """
        run = self.colour_steps(self, colour).run
        return [partial(run, column) for column in range(self.columns)]

    @abstractmethod
    def work(self) -> tuple[int, int]:
        """Multiply-adds of the largest product of a step, and of all products that begin a row."""

    @abstractmethod
    def begin_row(self) -> None:
        """Compute all that the new row, `self.row`, reads of the rows above it."""

    @abstractmethod
    def prefill(self, x: Tensor) -> None:
        """Take in the known rows x (B, C, rows, W) by one forward pass that keeps what later rows read."""

    def read_context(self, context: Tensor | None) -> list[ContextRows]:
        """What the context features (B, E', h, w) add to the layers; one for each resolution of the net."""
        return [ContextRows(self.net.biases, context)]

    def step(self, previous: Tensor | None) -> Tensor:
        """Take in the values (B, c) of the step before, None if they are known; -> features (B, D) of the next step."""
        place = self.t % self.row_steps
        if previous is not None:
            self.take_in(previous, place - 1)  # -1: the last step of the row before
        if place == 0:
            self.begin_row()
        self.t += 1
        return self.compute(self.steps[place])

    def compute(self, step: Any) -> Tensor:
        """Carry out a step -> features (B, D), in a new tensor."""
        return step()  # type: ignore[no-any-return]

    def take_in(self, values: Tensor, place: int) -> None:
        """Write the values (B, c) of the newest step, number `place` of its row, to where they are read."""
        self.net.values.put(values, self.inputs[place])

    def reorder(self, index: Tensor) -> None:
        """Keep the images `index` (B,), in that order: what resampling particles needs."""
        for dim, buffer in self.buffers:
            buffer.copy_(buffer.index_select(dim, index))
        for context in self.contexts:
            context.reorder(index)

    def slices(self, colour: int, *widths: int) -> list[slice]:
        """Which of the channels of layers of those widths belong to a colour."""
        return [group_slices(width, self.colours)[colour] for width in widths]

    def colour_by_colour(self, parts: int, width: int) -> Tensor:
        """The order of `parts` times `width` channels in which those of each colour, of all parts, come in turn."""
        channels = torch.arange(parts * width).view(parts, width)
        return moved(torch.cat([channels[:, own].flatten() for own in group_slices(width, self.colours)]), self.device)

    @property
    def row(self) -> int:
        """The row of the step to come."""
        return self.t // self.row_steps

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the type and on the device of the cache, of which `reorder` does not know: scratch."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def buffer(self, *shape: int, images: int) -> Tensor:
        """Zeros that `reorder` sorts along the dimension `images`: what later steps read of the images."""
        self.buffers.append((images, self.zeros(*shape)))
        return self.buffers[-1][1]


def by_column(buffer: Tensor) -> list[tuple[Tensor, ...]]:
    """(L, W, B, n) -> for every column the views (B, n) of all layers."""
    return [column.unbind() for column in buffer.unbind(1)]


def row_weight(weight: Tensor, own: int) -> Tensor:
    """Weights of a convolution on the current row, for a product with inputs that lie side by side.

    (n, D, taps), the last tap on the pixel itself -> ((taps - 1) D + own, n): the first `own` channels of the pixel.
    """
    left = weight[:, :, :-1].permute(2, 1, 0).flatten(0, 1)
    return torch.cat([left, weight[:, :own, -1].T])


def pointwise_weight(conv: MaskedConv2d, out: slice, stop: int) -> Tensor:
    """Weights of a 1x1 convolution for a product: the first `stop` inputs and the outputs `out`, (stop, n)."""
    return conv.masked_weight[out, :stop, 0, 0].T.contiguous()
