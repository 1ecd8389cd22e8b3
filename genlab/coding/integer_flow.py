"""Invertible maps of integers that follow the layers of a flow: fixed-point numbers in, fixed-point numbers out.

A flow is invertible on real numbers but not on floats. It also stretches and squeezes space, which a map from integers
to integers cannot do without losing or leaving out some. Here bits from a stack fill the difference (iFlow, Zhang et
al. 2021, arXiv:2111.00965). To stretch an interval of a integers to one of b, pop r uniformly from 0 … b - 1 and write

    k b + r = l a + s,    0 <= l < b,  0 <= s < a:      k becomes l, and s is pushed.

This is a bijection between (k, r) and (l, s). It takes log2 b bits from the stack and gives log2 a back, the logarithm
of the slope, as the density demands. A constant slope is one such fraction (`Scale`). A curved monotone function is
taken as linear between the points of a grid (`Curve`). Whatever is added to a number is rounded first.

Reals are multiples of `CELL`. Nets see floats of the numbers that a layer keeps, so both directions compute the same.

Arrays are int64. B images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genlab.coding.bit_stack import BitStack

BITS = 26  # after the binary point
CELL = 2.0**-BITS
SCALE_BITS = 10  # digits of a slope
MOST = 2**50  # numbers beyond are refused, before an int64 overflows
Function = Callable[[np.ndarray], np.ndarray]


def reals(k: np.ndarray) -> np.ndarray:
    """Integers -> floats."""
    return k * CELL


def integers(y: np.ndarray) -> np.ndarray:
    """Floats -> the nearest integers. Raises OverflowError for numbers that are too large."""
    k = np.rint(y / CELL)
    if not np.isfinite(k).all() or np.abs(k).max(initial=0) > MOST:
        raise OverflowError("the flow leads to a number that is too large to be coded")
    return k.astype(np.int64)


class Scale:
    """Multiplication by positive slopes (of the array's shape), rounded to `SCALE_BITS` binary digits: top / 2^bits."""

    def __init__(self, slope: np.ndarray) -> None:
        if not np.isfinite(slope).all() or slope.max(initial=1) > 2.0**30 or slope.min(initial=1) < 2.0**-30:
            raise OverflowError("the flow has a slope that is too large or too small to be coded")
        mantissa, exponent = np.frexp(slope)
        bits = SCALE_BITS - exponent.astype(np.int64)
        self.top = np.rint(mantissa * 2.0**SCALE_BITS).astype(np.int64) << np.maximum(-bits, 0)
        self.bits = np.maximum(bits, 0)

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        """k times the slope."""
        _check(k, self.top)
        whole = k * self.top + stack.pop_uniform(self.top)
        result: np.ndarray = whole >> self.bits
        stack.push_uniform(whole - (result << self.bits), np.int64(1) << self.bits)
        return result

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        """Undo `forward`."""
        _check(k, np.int64(1) << self.bits)
        whole = (k << self.bits) + stack.pop_uniform(np.int64(1) << self.bits)
        result: np.ndarray = whole // self.top
        stack.push_uniform(whole - result * self.top, self.top)
        return result


class Curve:
    """A strictly increasing function, linear between multiples of 2^bits.

    `function(grid)`: numbers of the grid points (int64, of the array's shape) -> values in units of CELL. They are
    floats that increase by 1 at least. `guess(k)`: roughly, the grid point whose interval has the value k in its image.
    """

    def __init__(self, function: Function, guess: Function, bits: int) -> None:
        self.function, self.guess, self.bits = function, guess, bits

    def at(self, grid: np.ndarray) -> np.ndarray:
        """Integer values at grid points."""
        value = np.floor(self.function(grid))
        if not np.isfinite(value).all() or np.abs(value).max(initial=0) > MOST:
            raise OverflowError("the flow leads to a number that is too large to be coded")
        return value.astype(np.int64)

    def forward(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        """The function of k."""
        grid = k >> self.bits
        low, size = self._interval(grid)
        _check(np.full_like(size, 2**self.bits), size)
        whole = (k - (grid << self.bits)) * size + stack.pop_uniform(size)
        stack.push_uniform(whole & (2**self.bits - 1), np.full(k.shape, 2**self.bits))
        return low + (whole >> self.bits)

    def inverse(self, k: np.ndarray, stack: BitStack) -> np.ndarray:
        """Undo `forward`."""
        grid = self._grid_point(k)
        low, size = self._interval(grid)
        whole = ((k - low) << self.bits) + stack.pop_uniform(np.full(k.shape, 2**self.bits))
        part = whole // size
        stack.push_uniform(whole - part * size, size)
        return (grid << self.bits) + part

    def _interval(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lowest value of the interval that begins at a grid point, and the number of its values."""
        low = self.at(grid)
        size = self.at(grid + 1) - low
        if size.min(initial=1) < 1:
            raise OverflowError("a layer of the flow does not increase everywhere")
        return low, size

    def _grid_point(self, k: np.ndarray) -> np.ndarray:
        """The grid point with at(point) <= k < at(point + 1): from the guess, by steps that double, then bisection."""
        low = self.guess(k).astype(np.int64)
        step = np.ones_like(low)
        while (outside := self.at(low) > k).any():
            low, step = np.where(outside, low - step, low), np.where(outside, 2 * step, step)
        high, step = low + 1, np.ones_like(low)
        while (outside := self.at(high) <= k).any():
            low, high = np.where(outside, high, low), np.where(outside, high + step, high)
            step = np.where(outside, 2 * step, step)
        while ((high - low) > 1).any():
            middle = (low + high) >> 1
            below = (self.at(middle) <= k) & (high - low > 1)
            above = ~below & (high - low > 1)
            low, high = np.where(below, middle, low), np.where(above, middle, high)
        return low


def _check(k: np.ndarray, size: np.ndarray) -> None:
    """Raise OverflowError if k times size does not fit into 63 bits."""
    if k.size and np.abs(k.astype(np.float64) * size).max() > 2.0**62:
        raise OverflowError("the flow leads to a number that is too large to be coded")
