"""AdamW and its learning-rate schedule: the section `optim` of a config.

AdamW is Loshchilov & Hutter 2019 (arXiv:1711.05101), by torch; the cosine is Loshchilov & Hutter 2017
(arXiv:1608.03983) without restarts. Weight decay is applied to matrices and kernels only: pulling a bias or a gain
towards zero does not regularise.

The schedule is a function of the step, and not one of torch's schedulers, which have a state: so a resumed run can have
another number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.core import RequestError, nearest

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class AdamW:
    """Settings of the optimiser.

    `warmup`: in optimiser steps. `discriminator_lr`: learning rate of a GAN's discriminator, None for `lr`.
    Raises RequestError for values that are not possible.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "cosine"
    fused: bool = True
    discriminator_lr: float | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise RequestError(f"optim.schedule={self.schedule} is unknown; {nearest(self.schedule, SCHEDULES)}")
        if not 0 < self.lr < math.inf or self.warmup < 0:
            raise RequestError(f"optim.lr={self.lr} must be above 0 and optim.warmup={self.warmup} at least 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RequestError(f"optim.betas={list(self.betas)} must be two numbers from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise RequestError(f"optim.weight_decay={self.weight_decay} must be 0 or more")
        if self.discriminator_lr is not None and not 0 < self.discriminator_lr < math.inf:
            raise RequestError(f"optim.discriminator_lr={self.discriminator_lr} must be above 0, or null for optim.lr")

    def optimizer(
        self, parameters: Iterable[Tensor], fused: bool, discriminator: Iterable[Tensor] = ()
    ) -> torch.optim.AdamW:
        """The optimiser of the parameters, with those of a discriminator. `fused`: True if the precision allows it."""
        groups = self._groups(parameters, self.lr) + self._groups(discriminator, self.discriminator_lr or self.lr)
        first, second = self.betas
        return torch.optim.AdamW(groups, lr=self.lr, betas=(first, second), fused=self.fused and fused)

    def _groups(self, parameters: Iterable[Tensor], lr: float) -> list[dict[str, Any]]:
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay, "lr": lr},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "lr": lr},
        ]
        return [group for group in groups if group["params"]]

    def factor(self, step: int, max_steps: int) -> float:
        """Factor of `lr` in optimiser step `step` = 0, 1, …: linear warm-up, then the schedule, which ends at 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, max_steps - self.warmup))
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.schedule == "linear" else 1.0
