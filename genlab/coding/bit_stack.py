"""A stack of bits for bits-back coding: what is pushed last is popped first.

Popping a value under a distribution removes about log2 1/p bits from the stack, and pushing one adds them. Each undoes
the other exactly. So values can be drawn from a distribution by popping, and the bits are not lost: the decoder pushes
them back (Hinton & van Camp 1993; Townsend, Bird, Barber 2019, "BB-ANS", arXiv:1901.04866). The coder is asymmetric
numeral systems (Duda 2009, arXiv:0902.0271), by constriction.

The first pops find an empty stack. So it begins with pseudo-random words, the same for every file. Those that no pop
has reached at the end are not stored, because the decoder can make them again.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np

LEVELS = constriction.stream.model.Categorical(perfect=False)
UNIFORM = constriction.stream.model.Uniform()
CELLS = 32  # the most cells in a standard deviation
# A uniform distribution of more values is coded in parts. constriction's has 24 bits, and its last value also gets what
# is left over, which is too much if there are many.
DIRECT = 2**12


class Corrupt(Exception):
    """The code was not made by this coder."""


class BitStack:
    """A stack that begins with `words` pseudo-random words of 32 bits, or with what `stored` returned.

    Arrays of values are int64; their shapes can be any.
    """

    def __init__(self, words: int, stored: bytes | None = None) -> None:
        self.initial = _pseudo_random(words)
        start = self.initial
        if stored is not None:
            if len(stored) < 4 or len(stored) % 4:
                raise Corrupt("the code has no whole number of words")
            kept = int(np.frombuffer(stored[:4], "<u4")[0])
            if kept > words:
                raise Corrupt("the code begins with more words than there are")
            rest = np.frombuffer(stored[4:], "<u4").astype(np.uint32)
            start = np.concatenate([self.initial[:kept], rest])
        self._coder: Any = constriction.stream.stack.AnsCoder(start)
        self.lowest = self._coder.num_words()  # the fewest words so far

    def stored(self) -> bytes:
        """The stack without the initial words that were never reached."""
        words = self._coder.get_compressed()
        kept = max(0, min(self.lowest - 2, len(self.initial)))  # the coder itself holds the top two words
        return np.uint32(kept).astype("<u4").tobytes() + words[kept:].astype("<u4").tobytes()

    @property
    def bits(self) -> int:
        """The number of bits on the stack."""
        return int(self._coder.num_bits())

    def check_restored(self) -> None:
        """Raise Corrupt unless the stack is as it began, as it is after a decoder has undone an encoder."""
        if not np.array_equal(self._coder.get_compressed(), self.initial):
            raise Corrupt("the code does not end as it began")

    def pop_levels(self, table: np.ndarray) -> np.ndarray:
        """Values (n,) under the probabilities (n, K)."""
        return self._popped(LEVELS, np.ascontiguousarray(table))

    def push_levels(self, values: np.ndarray, table: np.ndarray) -> None:
        """The inverse of `pop_levels`."""
        self._push(values, LEVELS, np.ascontiguousarray(table))

    def pop_normal(self, mean: np.ndarray, std: np.ndarray, reach: int) -> np.ndarray:
        """Integers under normal distributions, cut off `reach` standard deviations from the mean or further out.

        A value is a cell of a sixteenth of the deviation or less, under a rounded normal distribution, and a place in
        that cell, all of which are alike. For constriction gives every cell a share of 2^-24, and with cells of one
        value the many in the tails would have a percent of the mass.
        """
        shift, unit, centre = _cells(mean, std)
        cell = centre + self._popped(_normal(reach), (mean / unit - centre).ravel(), (std / unit).ravel()).reshape(
            mean.shape
        )
        return (cell << shift) + self.pop_uniform(np.int64(1) << shift) - (np.int64(1) << shift >> 1)

    def push_normal(self, values: np.ndarray, mean: np.ndarray, std: np.ndarray, reach: int) -> None:
        """The inverse of `pop_normal`. Raises OverflowError for a value that is cut off."""
        shift, unit, centre = _cells(mean, std)
        values = values + (np.int64(1) << shift >> 1)
        cell = values >> shift
        if values.size and np.abs(cell - centre).max() > reach * CELLS:
            raise OverflowError("a number is too large to be coded")
        self.push_uniform(values - (cell << shift), np.int64(1) << shift)
        self._push(cell - centre, _normal(reach), (mean / unit - centre).ravel(), (std / unit).ravel())

    def pop_uniform(self, sizes: np.ndarray) -> np.ndarray:
        """Integers in 0 … size - 1, for sizes of 1 or more."""
        flat = sizes.ravel()
        values = np.zeros(len(flat), np.int64)  # a size of 1 takes no bits, and constriction refuses it
        direct, large = (flat > 1) & (flat <= DIRECT), flat > DIRECT
        if direct.any():
            values[direct] = self._popped(UNIFORM, flat[direct].astype(np.int32))
        if large.any():
            shift, parts = _parts(flat[large])
            high = self._popped(UNIFORM, parts.astype(np.int32))
            values[large] = (high << shift) + self.pop_uniform(_low_sizes(flat[large], high, shift))
        return values.reshape(sizes.shape)

    def push_uniform(self, values: np.ndarray, sizes: np.ndarray) -> None:
        """The inverse of `pop_uniform`."""
        values, flat = values.ravel(), sizes.ravel()
        direct, large = (flat > 1) & (flat <= DIRECT), flat > DIRECT
        if large.any():
            shift, parts = _parts(flat[large])
            high = values[large] >> shift
            self.push_uniform(values[large] - (high << shift), _low_sizes(flat[large], high, shift))
            self._push(high, UNIFORM, parts.astype(np.int32))
        if direct.any():
            self._push(values[direct], UNIFORM, flat[direct].astype(np.int32))

    def _popped(self, model: Any, *parameters: np.ndarray) -> np.ndarray:
        values: np.ndarray = self._coder.decode(model, *parameters).astype(np.int64)
        self.lowest = min(self.lowest, self._coder.num_words())
        return values

    def _push(self, values: np.ndarray, model: Any, *parameters: np.ndarray) -> None:
        self._coder.encode_reverse(values.ravel().astype(np.int32), model, *parameters)


def _cells(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logarithms of the sizes of cells, 0 or more; the sizes; the cells of the means)."""
    shift = np.maximum(np.floor(np.log2(2 * std / CELLS)).astype(np.int64), 0)
    unit = 2.0**shift
    return shift, unit, np.rint(mean / unit).astype(np.int64)


def _normal(reach: int) -> Any:
    return constriction.stream.model.QuantizedGaussian(-reach * CELLS, reach * CELLS)


def _parts(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes above DIRECT -> (exponents s, numbers of parts of 2^s values, 2,048 to 4,096; the last may be smaller)."""
    shift = np.frexp(sizes.astype(np.float64))[1].astype(np.int64) - 12
    return shift, -((-sizes) >> shift)


def _low_sizes(sizes: np.ndarray, high: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The number of values in part `high`."""
    return np.minimum(np.int64(1) << shift, sizes - (high << shift))


def _pseudo_random(words: int) -> np.ndarray:
    """`words` words, the same on every machine and under every version; the last one is not 0."""
    number = np.arange(1, words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64 (Steele 2014)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((number ^ (number >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
