"""Images as a bits-back code of a flow: about minus its bound in bits for an image.

The encoder pops the dequantisation noise, maps the numbers to latents by the integer counterpart of every layer
(`integer_layers.py`), and pushes the latents under N(0, I). The decoder undoes this. The nets compute in float64,
because they see numbers of 26 binary places.

A pixel with its noise is x + u, u a multiple of 2^-16. n images, (C, H, W) their shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from genlab import flows
from genlab.coding.bit_stack import BitStack
from genlab.coding.bits_back import batches
from genlab.coding.integer_flow import CELL, Curve, reals
from genlab.coding.integer_layers import forward, inverse, pop_latents, push_latents

NOISE = 16  # bits of u
SHARE = 32  # as in bits_back.py: the noise of an image takes thirty times the bits that an image adds to the stack
FAR = 32.0  # the logits of 0 and 1, where they are infinite
MOST_EXCESS = 2**46


@torch.inference_mode()
def encode(model: Any, x: Tensor, most: int, context: Tensor | None = None) -> bytes:
    """Integers (n, C, H, W) -> the code; at most `most` images at once. `model`: a Flow in float64.

    Raises OverflowError if the flow leads to numbers that are too large.
    """
    stack = BitStack(_initial_words(model))
    for part in batches(len(x), most, SHARE):
        flow = IntegerFlow(model, stack, None if context is None else context[part])
        flow.push(x[part].cpu().numpy().astype(np.int64))
    return stack.stored()


@torch.inference_mode()
def decode(model: Any, code: bytes, n: int, most: int, context: Tensor | None = None) -> Tensor:
    """The code -> integers (n, C, H, W). Raises bit_stack.Corrupt if `encode` did not make it."""
    stack = BitStack(_initial_words(model), code)
    out = np.zeros((n, *model.spec.shape), np.int64)
    for part in reversed(batches(n, most, SHARE)):
        flow = IntegerFlow(model, stack, None if context is None else context[part])
        out[part] = flow.pop(part.stop - part.start)
    stack.check_restored()
    return torch.from_numpy(out)


def _initial_words(model: Any) -> int:
    """Enough for the noise and the layers of the first images."""
    return 4 * int(model.flow.dims) + 64


class IntegerFlow:
    """A flow's map from images to latents and back, on integers, for one batch."""

    def __init__(self, model: Any, stack: BitStack, context: Tensor | None) -> None:
        self.model, self.stack, self.context = model, stack, context
        self.squash = _logit_curve(model.spec.levels, model.squash.alpha)

    def push(self, x: np.ndarray) -> None:
        """Push images (B, C, H, W)."""
        model, condition = self.model, self.model._condition(self.context, len(x))
        y = _Dequantisation(model.dequantisation, self.stack).forward(x)
        k = self.squash.forward(y, self.stack)
        parts = []
        for level, split, (leaving, *_) in zip(model.flow.levels, model.flow.splits, model.flow.shapes, strict=False):
            k = forward(split, forward(level, k, self.stack, condition), self.stack, condition)
            parts.append(k[:, :leaving].reshape(len(x), -1))
            k = k[:, leaving:]
        parts.append(forward(model.flow.top, k, self.stack, condition).reshape(len(x), -1))
        push_latents(self.stack, np.concatenate(parts, 1))

    def pop(self, n: int) -> np.ndarray:
        """The inverse of `push`: images (n, C, H, W)."""
        model, flow, condition = self.model, self.model.flow, self.model._condition(self.context, n)
        z = pop_latents(self.stack, (n, flow.dims))
        ends = np.cumsum([c * h * w for c, h, w in flow.shapes])[:-1]
        *parts, top = (p.reshape(n, *s) for p, s in zip(np.split(z, ends, 1), flow.shapes, strict=True))
        k = inverse(flow.top, top, self.stack, condition)
        for level, split, part in zip(reversed(flow.levels), reversed(flow.splits), reversed(parts), strict=True):
            k = inverse(split, np.concatenate([part, k], 1), self.stack, condition)
            k = inverse(level, k, self.stack, condition)
        return _Dequantisation(model.dequantisation, self.stack).inverse(self.squash.inverse(k, self.stack))


class _Dequantisation:
    """Images x (B, C, H, W) and popped noise u -> x 2^16 + u."""

    def __init__(self, layer: Any, stack: BitStack) -> None:
        self.layer, self.stack = layer, stack
        self.learnt = isinstance(layer, flows.Variational)
        self.curve = _logit_curve(1, 0.0)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return (x << NOISE) + self._pop_noise(x)

    def inverse(self, y: np.ndarray) -> np.ndarray:
        x, u = y >> NOISE, y & (2**NOISE - 1)
        if x.min(initial=0) < 0 or x.max(initial=0) >= self.layer.levels:
            raise OverflowError("the flow leads out of the range of pixels")
        self._push_noise(x, u)
        return x

    def _pop_noise(self, x: np.ndarray) -> np.ndarray:
        if not self.learnt:
            return self.stack.pop_uniform(np.full(x.shape, 2**NOISE))
        noise = self.stack.pop_uniform(np.full((len(x), *self.layer.padded), 2**NOISE))
        squeeze, features = self.layer.squeeze, self.layer.features(torch.from_numpy(x).double())
        v = forward(squeeze, self.curve.forward(noise, self.stack), self.stack, None)
        v = inverse(squeeze, forward(self.layer.flow, v, self.stack, features), self.stack, None)
        u = self._push_excess(self.curve.inverse(v, self.stack))
        inside, outside = self._inside(x)
        self.stack.push_uniform(u[:, outside], np.full((len(x), int(outside.sum())), 2**NOISE))
        return u[:, inside].reshape(x.shape)

    def _push_noise(self, x: np.ndarray, kept: np.ndarray) -> None:
        if not self.learnt:
            self.stack.push_uniform(kept, np.full(kept.shape, 2**NOISE))
            return
        inside, outside = self._inside(x)
        u = np.empty((len(x), *self.layer.padded), np.int64)
        u[:, outside] = self.stack.pop_uniform(np.full((len(x), int(outside.sum())), 2**NOISE))
        u[:, inside] = kept.reshape(len(x), -1)
        squeeze, features = self.layer.squeeze, self.layer.features(torch.from_numpy(x).double())
        v = forward(squeeze, self.curve.forward(self._pop_excess(u), self.stack), self.stack, None)
        v = inverse(squeeze, inverse(self.layer.flow, v, self.stack, features), self.stack, None)
        self.stack.push_uniform(self.curve.inverse(v, self.stack), np.full(u.shape, 2**NOISE))

    def _push_excess(self, u: np.ndarray) -> np.ndarray:
        """Noise that lies beyond 0 or 1 becomes the outermost value, and the excess of every outermost value is pushed.
        There are few: the noise is the sigmoid of a real number.
        """
        kept = np.clip(u, 0, 2**NOISE - 1)
        ends = (kept == 0) | (kept == 2**NOISE - 1)
        self.stack.push_uniform(np.abs(u - kept)[ends], np.full(int(ends.sum()), MOST_EXCESS))
        return kept

    def _pop_excess(self, u: np.ndarray) -> np.ndarray:
        """The inverse of `_push_excess`."""
        ends = (u == 0) | (u == 2**NOISE - 1)
        u = u.copy()
        u[ends] += np.where(u[ends] == 0, -1, 1) * self.stack.pop_uniform(np.full(int(ends.sum()), MOST_EXCESS))
        return u

    def _inside(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks (C, H', W') of the padded image: the image, and what was added."""
        inside = np.zeros(self.layer.padded, bool)
        inside[:, : x.shape[2], : x.shape[3]] = True
        return inside, ~inside


def _logit_curve(levels: int, alpha: float) -> Curve:
    """y in units of 2^-16 -> logit(alpha + (1 - 2 alpha) y / K), linear over 2^-14; straight on beyond (0, K)."""
    bits = 2
    top = levels << (NOISE - bits)
    end = FAR if alpha == 0 else float(logit(1 - alpha))

    def function(grid: np.ndarray) -> np.ndarray:
        inside = np.clip(grid, 0, top)
        with np.errstate(divide="ignore"):
            value = logit(alpha + (1 - 2 * alpha) * inside / top)
        return np.clip(value, -end, end) / CELL + (grid - inside)

    def guess(k: np.ndarray) -> np.ndarray:
        p = (1 / (1 + np.exp(-np.clip(reals(k), -FAR, FAR))) - alpha) / (1 - 2 * alpha)
        return np.floor(np.clip(p, 0, 1) * top)

    return Curve(function, guess, bits)
