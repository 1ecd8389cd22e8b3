"""Sums over images of the terms of the objective, in float64, from one logged row to the next.

torchmetrics' MeanMetric is not used: the sums of a step are added only if the step is not skipped, and they
are kept in checkpoints as plain numbers, summed over the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.system.device import moved


def sum_and_count(values: Tensor) -> Tensor:
    """Per-image values (B,) -> their sum and how many there are, float64 (2,)."""
    total = values.detach().double().sum()
    return torch.stack([total, torch.full_like(total, len(values))])


class RunningSums:
    """By name of a term: its sum over images and the number of images, float64 (2,), on the device of the values."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add_values(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of a batch, each (B,)."""
        self.add({name: sum_and_count(values) for name, values in terms.items()})

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add other sums, (2,) each."""
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def gathered(self) -> dict[str, list[float]]:
        """[sum, count] of each term over all ranks. Every rank must call it."""
        if not self.sums:
            return {}
        total = torch.stack(list(self.sums.values()))
        if dist.is_initialized():
            dist.all_reduce(total)
        return dict(zip(self.sums, total.tolist(), strict=True))

    def load(self, sums: Mapping[str, list[float]], rank: int) -> None:
        """Take over what `gathered` returned: rank zero takes all of it, the other ranks zeros."""
        share = float(rank == 0)
        self.sums = {name: share * torch.tensor(value, dtype=torch.double) for name, value in sums.items()}

    def to(self, device: torch.device) -> None:
        """Move the sums to a device."""
        self.sums = {name: moved(value, device) for name, value in self.sums.items()}
