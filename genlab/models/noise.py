"""Random numbers of a drawing, drawn on the generator's device and then moved to the model's.

So a seeded generator on the CPU gives the same numbers on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.system.device import moved


def uniform(
    *shape: int, device: torch.device, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float
) -> Tensor:
    """Uniform numbers in [0, 1) on `device`; from torch's global generator of the device without a `generator`."""
    source = device if generator is None else generator.device
    return moved(torch.rand(shape, generator=generator, device=source, dtype=dtype), device)


def normal(
    *shape: int, device: torch.device, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float
) -> Tensor:
    """Numbers of N(0, 1) on `device`; from torch's global generator of the device without a `generator`."""
    source = device if generator is None else generator.device
    return moved(torch.randn(shape, generator=generator, device=source, dtype=dtype), device)
