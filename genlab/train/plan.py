"""How a run uses the hardware: the section `trainer` of a config, checked against this machine.

Settings that are not possible on this machine raise an error here, before a folder is made or a process is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from genlab.core import RequestError, nearest
from genlab.train.precision import faster

PRECISIONS = {"auto": "", "32": "32-true", "bf16-mixed": "bf16-mixed", "fp16-mixed": "16-mixed"}


@dataclass(frozen=True)
class Plan:
    """`devices` processes on each of `nodes` machines, one device each.

    `precision`: as Lightning spells it. `max_steps`: optimiser steps; 0 if the run has yet to choose their number
    (`budget.py`). `accumulate`: batches per optimiser step. `clip`: largest norm of the gradient.
    """

    accelerator: str
    devices: int
    nodes: int
    strategy: str
    precision: str
    max_steps: int
    accumulate: int
    clip: float | None

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> Plan:
        """The plan for this machine. Raises RequestError for a setting that is not possible on it."""
        accelerator = _one_of("accelerator", trainer["accelerator"], ("auto", "cpu", "gpu"))
        gpus = torch.cuda.device_count()
        if accelerator == "gpu" and not gpus:
            raise RequestError("trainer.accelerator=gpu: this machine has no GPU that PyTorch can use; try trainer=cpu")
        accelerator = ("gpu" if gpus else "cpu") if accelerator == "auto" else accelerator
        devices = trainer["devices"]
        if devices == "auto":
            devices = gpus if accelerator == "gpu" else 1
        devices = _positive("devices", devices, 'a number of devices or "auto"')
        if accelerator == "gpu" and devices > gpus:
            raise RequestError(f"trainer.devices={devices}: this machine has {gpus} GPU{'s' * (gpus != 1)}")
        strategy = _one_of("strategy", trainer["strategy"], ("auto", "ddp", "fsdp"))
        clip, steps = trainer["gradient_clip_val"], trainer.get("max_steps")
        if clip is not None and not (isinstance(clip, (int, float)) and clip > 0):
            raise RequestError(f"trainer.gradient_clip_val={clip} must be above 0, or null for no clipping")
        return cls(
            accelerator=accelerator,
            devices=devices,
            nodes=_positive("num_nodes", trainer["num_nodes"], "a number of machines"),
            strategy=strategy,
            precision=_precision(str(trainer["precision"]), accelerator),
            max_steps=0 if steps is None else _positive("max_steps", steps, "a number of optimiser steps"),
            accumulate=_positive("accumulate_grad_batches", trainer["accumulate_grad_batches"], "a number of batches"),
            clip=clip,
        )

    @property
    def processes(self) -> int:
        """Number of processes on all machines together."""
        return self.devices * self.nodes


def _positive(key: str, value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"trainer.{key}={value} must be {what}, at least 1")
    return value


def _one_of(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise RequestError(f"trainer.{key}={value} is unknown; {nearest(str(value), choices)}")
    return value


def _precision(precision: str, accelerator: str) -> str:
    if precision not in PRECISIONS:
        raise RequestError(f"trainer.precision={precision} is unknown; {nearest(precision, PRECISIONS)}")
    if precision == "fp16-mixed" and accelerator == "cpu":
        raise RequestError("trainer.precision=fp16-mixed needs a GPU; on a CPU choose bf16-mixed or 32")
    return PRECISIONS[faster(accelerator)[0] if precision == "auto" else precision]
