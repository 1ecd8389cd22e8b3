"""Operations that are prepared together with their operands: `functools.partial` of a function, buffers and weights.

A step then only calls them in order. They take the place of named operands where a step consists of many small parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Call = Callable[[], Tensor]


def run(calls: Sequence[Call]) -> Tensor:
    """Make all calls in order; -> the result of the last one."""
    for call in calls:
        result = call()
    return result
