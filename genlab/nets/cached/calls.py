"""Operations that are prepared together with their operands, so that a step only has to call them in order.

Where a net is narrow Python is the main cost of a step. `functools.partial` of an operation and its operands, views of
buffers and weights, is faster than to look them up at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[[], Tensor]
# The operations behind torch.nn.functional, which has them without `out`.
elu: Callable[..., Tensor] = torch._C._nn.elu
elu_: Callable[..., Tensor] = torch._C._nn.elu_
glu: Callable[..., Tensor] = torch._C._nn.glu


def run(calls: Sequence[Call]) -> Tensor:
    """Make all calls in order; -> the result of the last one."""
    for call in calls:
        result = call()
    return result
