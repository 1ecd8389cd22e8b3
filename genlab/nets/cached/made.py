"""Cache of a MADE: every hidden unit is computed once, at the step from which all that it reads is known.

The units are in the order of their degrees. So the units that are known at step t are the first ones of every layer,
and a step computes the next few of each: an image costs about as much as one forward pass.

B images, T steps of c values, E numbers that the net reads for a value, D features of a step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.cached.base import Cache
from genlab.nets.causal.made import MADE


class MADECache(Cache):
    """The values so far (B, T c E), and the units of every layer (B, width), known from left to right."""

    net: MADE

    def allocate(self) -> None:
        net, count = self.net, self.net.spec.dims // self.net.step_channels
        self.x = self.buffer(self.batch, count * net.step_width, images=0)
        self.layers = [self.buffer(self.batch, net.width, images=0) for _ in net.blocks]
        self.ends = torch.searchsorted(net.degrees, torch.arange(count), right=True).tolist()  # units known at a step
        self.maps = [(block.map.masked_weight, block.map.bias) for block in net.blocks]
        self.last = net.last.masked_weight.unflatten(0, (count, -1)), net.last.bias.unflatten(0, (count, -1))
        biases = self.contexts[0].until(net.spec.height)
        self.hidden = [None if bias is None else bias.mean((2, 3)) for bias in biases[:-1]]
        self.added = None if biases[-1] is None else net.step_biases(biases[-1])

    def make_steps(self, colour: int) -> list[Any]:
        return [None] * self.columns  # `compute` knows the step by `t`

    def work(self) -> tuple[int, int]:
        return self.batch * self.net.width * self.net.out_width, 0

    def begin_row(self) -> None:
        pass  # a row is nothing special here

    def take_in(self, values: Tensor, place: int) -> None:
        width = self.net.step_width
        self.net.values.put(values, self.x[:, (self.t - 1) * width : self.t * width])

    def compute(self, step: Any) -> Tensor:
        t = self.t - 1
        start, end, known = self.ends[t - 1] if t else 0, self.ends[t], t * self.net.step_width
        h = self.x[:, :known]
        for units, (weight, bias), context in zip(self.layers, self.maps, self.hidden, strict=True):
            new = F.linear(h, weight[start:end, : h.shape[1]], bias[start:end])
            units[:, start:end] = (new if context is None else new + context[:, start:end]).relu_()
            h = units[:, :end]
        weight, bias = self.last
        out = F.linear(h, weight[t, :, :end], bias[t])
        return out if self.added is None else out + self.added[:, t]

    def prefill(self, x: Tensor) -> None:
        """Take in the known rows x (B, C, rows, W). Units that read later pixels are computed again at their step."""
        spec = self.net.spec
        whole = F.pad(x, (0, 0, 0, spec.height - x.shape[2]))
        self.x.copy_(self.net.values(whole).permute(0, 2, 3, 1).reshape(self.x.shape))
        biases = self.contexts[0].until(spec.height)[:-1]
        for units, layer in zip(self.layers, self.net.hidden(whole, biases), strict=True):
            units.copy_(layer[:, 0])

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        self.hidden = [None if each is None else each[index] for each in self.hidden]
        self.added = None if self.added is None else self.added[index]
