"""The optimisers and their learning-rate schedule: the section `optim` of a config.

AdamW is Loshchilov & Hutter 2019 (arXiv:1711.05101), by torch; Muon is in `muon.py`. Weight decay is applied to
matrices and kernels only: pulling a bias or a gain towards zero does not regularise.

After the warm-up, with a share d of the steps done, the learning rate is multiplied by
    cosine       (1 + cos(pi d)) / 2            Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts
    linear       1 - d
    trapezoid    1, and over the last 40 % of the steps linearly to 0: Hägele et al. 2024 (arXiv:2405.18392)
    constant     1

The schedule is a function of the step, and not one of torch's schedulers, which have a state: so a resumed run can have
another number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import RequestError, nearest
from genlab.train import muon

SCHEDULES = ("cosine", "linear", "trapezoid", "constant")
DECAY = 0.4  # share of the steps in which a trapezoid falls


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

    def optimizer(self, model: nn.Module, fused: bool, discriminator: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of a model, with the weights of a discriminator beside it. `fused`: True if the precision
        allows it.
        """
        groups = self._groups(model.parameters(), self.lr)
        if discriminator is not None:
            groups += self._groups(discriminator.parameters(), self.discriminator_lr or self.lr)
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
        """Factor of `lr` in optimiser step `step` = 0, 1, …: linear warm-up, then the schedule."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, max_steps - self.warmup))
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "trapezoid":
            return min(1.0, (1 - done) / DECAY)
        return 1 - done if self.schedule == "linear" else 1.0


@dataclass(frozen=True)
class Muon(AdamW):
    """Settings of Muon, and of AdamW for the weights that are no matrices.

    `lr`: of matrices; `adam_lr`: of all other weights. A discriminator has `discriminator_lr` for its matrices, and for
    its other weights the same multiple of `adam_lr`. `betas` and `fused` are those of AdamW. Raises RequestError for
    values that are not possible.
    """

    lr: float = 5e-3
    adam_lr: float = 3e-3
    momentum: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.adam_lr < math.inf:
            raise RequestError(f"optim.adam_lr={self.adam_lr} must be above 0")
        if not 0 <= self.momentum < 1:
            raise RequestError(f"optim.momentum={self.momentum} must be a number from 0 to below 1")

    def optimizer(self, model: nn.Module, fused: bool, discriminator: nn.Module | None = None) -> torch.optim.Optimizer:
        """As for AdamW."""
        players = [(model, 1.0)]
        if discriminator is not None:
            players.append((discriminator, (self.discriminator_lr or self.lr) / self.lr))
        groups: list[dict[str, Any]] = []
        layouts: dict[nn.Parameter, muon.Layout] = {}
        for player, factor in players:
            of_player = muon.layouts(player)
            layouts |= of_player
            matrices = [p for p in player.parameters() if p.requires_grad and p in of_player]
            others = [p for p in player.parameters() if p not in of_player]
            settings = {"betas": tuple(self.betas), "eps": 1e-8, "fused": self.fused and fused}
            if matrices:
                group = {"lr": factor * self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
                groups.append({"params": matrices, **group})
            # Updates of matrices have a fixed size, so without decay the weights grow and gates saturate. The others
            # are not decayed: a head needs large weights to be certain.
            groups += [
                {**group, **settings, "weight_decay": 0.0} for group in self._groups(others, factor * self.adam_lr)
            ]
        return muon.Muon(groups, layouts)


def settings(section: Mapping[str, Any]) -> AdamW:
    """The settings in the section `optim` of a config. Its `kind` is adamw if it has none.

    Raises RequestError for a key or a value that is not possible.
    """
    kinds = {"adamw": AdamW, "muon": Muon}
    values = dict(section)
    kind = str(values.pop("kind", "adamw"))
    if kind not in kinds:
        raise RequestError(f"optim.kind={kind} is unknown; {nearest(kind, kinds)}")
    try:
        return kinds[kind](**values)
    except TypeError as error:
        raise RequestError(f"optim: {error}") from error
