"""Probability tables for the entropy coders, from the logits of a model.

constriction (Bamler 2022, arXiv:2201.01741) codes n values at once from a table (n, K) of probabilities. It rounds them
to integers of 24 bits in a fixed way, so encoder and decoder need equal tables. Two kinds are made here:

`Plain` rounds nothing. The table is the softmax in float32. It is equal in encoder and decoder if the net computes the
same bits in both, which takes the same kind of machine, library version and batch. It is handed over as float64,
because constriction sums it up, and a sum in float32 may leave nothing for an unlikely value.

`Portable` tolerates small differences. The net computes in float64. The distribution function of a value is rounded to
multiples of 2^-16, and the table holds the differences. Two machines whose float64 results differ in the last places
still round to the same multiple, unless the number lies close to the middle between two multiples. The encoder knows
which two bounds the decoder will use, those of the true level. If one of them is within `MARGIN` of a middle, the value
is an exception: its place is written down, and both sides code it with a uniform table. Other bounds may then differ
between the machines, because a range decoder only compares with the two that enclose its number.

n images, K levels.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

UNITS = 2**16  # the distribution function is rounded to multiples of 1 / UNITS
MARGIN = 1e-10  # float64 results of two machines differ by about 1e-14


class Plain:
    """The probabilities as the net computes them."""

    exceptions: Collection[int] = ()

    def of(self, logits: Tensor, values: Tensor | None) -> np.ndarray:
        """Logits (n, K), and when encoding the true values (n,) -> probabilities (n, K)."""
        return logits.float().softmax(-1).double().cpu().numpy()


class Portable:
    """Rounded probabilities. Values are counted, n for each table; `exceptions` are the numbers of those that are coded
    uniformly. When encoding, they are found; when decoding, they are given.
    """

    def __init__(self, exceptions: Collection[int] = ()) -> None:
        self.exceptions = set(exceptions)
        self.count = 0

    def of(self, logits: Tensor, values: Tensor | None) -> np.ndarray:
        """Logits (n, K) in float64, and when encoding the true values (n,) -> probabilities (n, K)."""
        cdf = logits.double().softmax(-1).cumsum(-1)
        scaled = torch.nn.functional.pad(cdf[:, :-1] / cdf[:, -1:] * UNITS, (1, 0))  # the lower bound of every level
        bounds = torch.nn.functional.pad((scaled + 0.5).floor(), (0, 1), value=UNITS)
        table = bounds.diff(dim=-1).cpu().numpy()
        numbers = range(self.count, self.count + len(table))
        self.count += len(table)
        if values is not None:
            off_middle = torch.nn.functional.pad(((scaled % 1) - 0.5).abs(), (0, 1), value=1.0)
            off_middle[:, 0] = 1.0  # the outermost bounds are 0 and 1 on every machine
            used = torch.stack([values, values + 1], -1)
            close = (off_middle.gather(-1, used) < MARGIN * UNITS).any(-1)
            self.exceptions.update(numbers[i] for i in close.nonzero().flatten().tolist())
        for i in [i for i, number in enumerate(numbers) if number in self.exceptions] if self.exceptions else ():
            table[i] = 1.0
        return table
