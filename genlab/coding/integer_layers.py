"""The integer counterpart of every layer of a flow (see `integer_flow.py`).

Integers are int64 arrays (B, C, H, W). Parameters that depend on numbers are computed from those that the layer does
not change, so that the inverse finds the same ones. Noise that a layer draws is popped from the stack, and noise that
its inverse removes is pushed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab import flows
from genlab.coding.bit_stack import BitStack
from genlab.coding.integer_flow import BITS, CELL, Curve, Scale, integers, reals
from genlab.flows.coupling import bounded
from genlab.flows.mixture import logit_cdf

LATENT_REACH, NOISE_REACH = 64, 8  # standard deviations beyond which a normal distribution is cut off
FURTHEST, MOST_BEYOND = 60 << BITS, 2**46  # a latent beyond 60 is coded as 60 and the rest


def forward(layer: Any, k: np.ndarray, stack: BitStack, context: Tensor | None) -> np.ndarray:
    """A layer on integers (B, C, H, W)."""
    return _MAPS[type(layer)](layer, context).forward(k, stack)


def inverse(layer: Any, k: np.ndarray, stack: BitStack, context: Tensor | None) -> np.ndarray:
    """Undo `forward`."""
    return _MAPS[type(layer)](layer, context).inverse(k, stack)


class _Map:
    """A layer on integers (B, C, H, W); `context`: features, or None."""

    def __init__(self, layer: Any, context: Tensor | None) -> None:
        self.layer, self.context = layer, context

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        raise NotImplementedError

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        raise NotImplementedError


class _Stack(_Map):
    """Layers one after the other."""

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        for layer in self.layer.layers:
            k = forward(layer, k, stack, self.context)
        return k

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        for layer in reversed(self.layer.layers):
            k = inverse(layer, k, stack, self.context)
        return k


class _Squeeze(_Map):
    """A permutation."""

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        return self.layer(torch.from_numpy(np.ascontiguousarray(k)))[0].numpy()  # type: ignore[no-any-return]

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        return self.layer.inverse(torch.from_numpy(np.ascontiguousarray(k))).numpy()  # type: ignore[no-any-return]


class _Pad(_Map):
    """Noise from N(0, 1) is popped and put around the image; the inverse pushes it."""

    def __init__(self, layer: Any, context: Tensor | None) -> None:
        super().__init__(layer, context)
        inside = np.zeros(layer.padded, bool)
        inside[:, : layer.height, : layer.width] = True
        self.inside = inside

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        out = np.empty((len(k), *self.inside.shape), np.int64)
        out[:, self.inside] = k.reshape(len(k), -1)
        noise = np.zeros((len(k), int((~self.inside).sum())))
        out[:, ~self.inside] = stack.pop_normal(noise, noise + 1 / CELL, NOISE_REACH)
        return out

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        noise = k[:, ~self.inside]
        stack.push_normal(noise, np.zeros(noise.shape), np.full(noise.shape, 1 / CELL), NOISE_REACH)
        return k[:, self.inside].reshape(len(k), -1, self.layer.height, self.layer.width)


class _ActNorm(_Map):
    """A shift and a slope of every channel."""

    def __init__(self, layer: Any, context: Tensor | None) -> None:
        super().__init__(layer, context)
        self.shift = integers((layer.mean + layer.bias * layer.std).numpy())
        self.slope = (layer.log_scale.exp() / layer.std).numpy()

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        return Scale(np.broadcast_to(self.slope, k.shape)).forward(k - self.shift, stack)

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        return Scale(np.broadcast_to(self.slope, k.shape)).inverse(k, stack) + self.shift


class _Mixing(_Map):
    """A permutation, then U, then L. Both triangular products change one channel after another, each given channels
    that are not changed in between.
    """

    def __init__(self, layer: Any, context: Tensor | None) -> None:
        super().__init__(layer, context)
        self.order = layer.order.numpy()
        self.lower = layer.lower.tril(-1).numpy()
        self.upper = layer.upper.triu(1).numpy()
        self.diagonal = layer.log_diagonal.exp().numpy()

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        k = k[:, self.order]
        for i, slope in enumerate(self.diagonal):
            k[:, i] = Scale(np.full(k[:, i].shape, slope)).forward(k[:, i], stack) + self._sum(self.upper[i], k)
        for i in reversed(range(len(self.diagonal))):
            k[:, i] += self._sum(self.lower[i], k)
        return k

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        k = k.copy()
        for i in range(len(self.diagonal)):
            k[:, i] -= self._sum(self.lower[i], k)
        for i, slope in reversed(list(enumerate(self.diagonal))):
            k[:, i] = Scale(np.full(k[:, i].shape, slope)).inverse(k[:, i] - self._sum(self.upper[i], k), stack)
        return k[:, np.argsort(self.order)]

    @staticmethod
    def _sum(weights: np.ndarray, k: np.ndarray) -> np.ndarray:
        """The channels of k (B, C, H, W) times the weights (C,), rounded; weights of 0 are left out."""
        used = np.flatnonzero(weights)
        total = np.zeros((len(k), *k.shape[2:]))
        for j in used:
            total += weights[j] * reals(k[:, j])
        return integers(total)


class _Coupling(_Map):
    """The first channels change, given the others."""

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        changed, kept, parameters = self._parts(k)
        return np.concatenate([self.transform(changed, parameters, stack), kept], 1)

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        changed, kept, parameters = self._parts(k)
        return np.concatenate([self.undo(changed, parameters, stack), kept], 1)

    def _parts(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
        kept = k[:, self.layer.changed :]
        return k[:, : self.layer.changed], kept, self.layer.net_outputs(torch.from_numpy(reals(kept)), self.context)

    def transform(self, k: np.ndarray, parameters: Tensor, stack: BitStack) -> np.ndarray:
        raise NotImplementedError

    def undo(self, k: np.ndarray, parameters: Tensor, stack: BitStack) -> np.ndarray:
        raise NotImplementedError


class _AffineCoupling(_Coupling):
    """A slope and a shift of every number."""

    def transform(self, k: np.ndarray, parameters: Tensor, stack: BitStack) -> np.ndarray:
        slope, shift = self._affine(parameters)
        return slope.forward(k, stack) + shift

    def undo(self, k: np.ndarray, parameters: Tensor, stack: BitStack) -> np.ndarray:
        slope, shift = self._affine(parameters)
        return slope.inverse(k - shift, stack)

    def _affine(self, parameters: Tensor) -> tuple[Scale, np.ndarray]:
        return Scale(bounded(parameters[:, 0]).exp().numpy()), integers(parameters[:, 1].numpy())


class _MixtureCoupling(_Coupling):
    """A curve for every number."""

    BITS = 12  # the curve is linear over 2^-14
    LIFT = 2.0  # units of CELL added for each grid point, so that the curve increases also where it is flat

    def transform(self, k: np.ndarray, parameters: Tensor, stack: BitStack) -> np.ndarray:
        return self._curve(parameters).forward(k, stack)

    def undo(self, k: np.ndarray, parameters: Tensor, stack: BitStack) -> np.ndarray:
        return self._curve(parameters).inverse(k, stack)

    def _curve(self, parameters: Tensor) -> Curve:
        log_weight, mean, log_scale, stretch, shift = self.layer.unpacked(parameters)

        def function(grid: np.ndarray) -> np.ndarray:
            y = torch.from_numpy(reals(grid << self.BITS))
            z = logit_cdf(y, log_weight, mean, log_scale)[0] * stretch.exp() + shift
            return z.numpy() / CELL + self.LIFT * grid

        def guess(k: np.ndarray) -> np.ndarray:
            z = torch.from_numpy(reals(k))
            y = self.layer.undo(z, parameters)
            y = self.layer.undo(z - self.LIFT * 2.0**-self.BITS * y, parameters)
            return np.floor(y.numpy() / CELL * 2.0**-self.BITS)

        return Curve(function, guess, self.BITS)


class _Split(_Map):
    """The first channels are standardised, given the others."""

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        leaving, kept, slope, shift = self._parts(k)
        return np.concatenate([slope.forward(leaving - shift, stack), kept], 1)

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        leaving, kept, slope, shift = self._parts(k)
        return np.concatenate([slope.inverse(leaving, stack) + shift, kept], 1)

    def _parts(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray, Scale, np.ndarray]:
        leaving, kept = k[:, : self.layer.leaving], k[:, self.layer.leaving :]
        mean, log_std = self.layer.gaussian(torch.from_numpy(reals(kept)), self.context)
        slope = np.broadcast_to((-log_std).exp().numpy(), leaving.shape)
        return leaving, kept, Scale(slope), np.broadcast_to(integers(mean.numpy()), leaving.shape)


_MAPS: dict[type, type[_Map]] = {
    flows.Stack: _Stack,
    flows.Squeeze: _Squeeze,
    flows.Pad: _Pad,
    flows.ActNorm: _ActNorm,
    flows.Mixing: _Mixing,
    flows.AffineCoupling: _AffineCoupling,
    flows.MixtureCoupling: _MixtureCoupling,
    flows.Split: _Split,
}


def pop_latents(stack: BitStack, shape: tuple[int, ...]) -> np.ndarray:
    """Integers under N(0, 1). The few that lie beyond 60 are spread evenly."""
    k = stack.pop_normal(np.zeros(shape), np.full(shape, 1 / CELL), LATENT_REACH)
    beyond = np.abs(k) == FURTHEST
    if beyond.any():
        k[beyond] += np.sign(k[beyond]) * stack.pop_uniform(np.full(int(beyond.sum()), MOST_BEYOND))
    return k


def push_latents(stack: BitStack, k: np.ndarray) -> None:
    """The inverse of `pop_latents`. Raises OverflowError for numbers beyond 2^20."""
    inside = np.clip(k, -FURTHEST, FURTHEST)
    beyond = np.abs(inside) == FURTHEST
    if beyond.any():
        excess = np.abs(k - inside)[beyond]
        if excess.max() >= MOST_BEYOND:
            raise OverflowError("the flow leads to a latent that is too large to be coded")
        stack.push_uniform(excess, np.full(excess.shape, MOST_BEYOND))
    stack.push_normal(inside, np.zeros(k.shape), np.full(k.shape, 1 / CELL), LATENT_REACH)
