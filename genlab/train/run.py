"""The parts of a run as one value: the model, the data, the settings, the hardware and the folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from genlab.core import RequestError
from genlab.train.full_batch import uses_full_batch
from genlab.train.plan import Plan


@dataclass
class Run:
    """A run trains `model` on `data` in `folder`, with the settings `config` (plain dictionaries) and `plan`.

    `card`: the entries of every checkpoint under "genlab", primitives and tensors only. `checkpoint`: the content of
    last.ckpt if the run is resumed; it is as large as model and optimiser together, so `fit` takes it out.
    """

    model: nn.Module
    data: Any
    config: Mapping[str, Any]
    plan: Plan
    folder: Path
    card: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, Any] | None = None

    @property
    def last(self) -> Path:
        """The checkpoint that a resumed run continues from."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation value."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def batch_images(self) -> int:
        """Images of one batch on all ranks together."""
        return int(self.data.batch_size) * self.plan.processes

    @property
    def step_images(self) -> int:
        """Images of one optimiser step on all ranks together."""
        if uses_full_batch(self.model):
            return len(self.data.split("train").labels)
        return self.batch_images * self.plan.accumulate

    def take_checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint and drop the reference to it, so that its memory can be freed."""
        checkpoint, self.checkpoint = self.checkpoint, None
        return checkpoint


def check_train(train: Mapping[str, Any]) -> None:
    """Raise RequestError if a setting of the section `train` of a config is not possible."""
    for key in ("log_every", "valid_every", "checkpoint_every", "max_bad_steps", "samples"):
        chosen_later = train[key] is None and key.endswith("_every") and key != "log_every"
        if not chosen_later and (not isinstance(train[key], int) or train[key] < 1):
            raise RequestError(f"train.{key}={train[key]} must be a whole number of at least 1")
    for key in ("minutes", "epochs", "pause_after"):
        if train.get(key) is not None and not 0 < train[key] < math.inf:
            raise RequestError(f"train.{key}={train[key]} must be a number above 0")
    if train.get("repeat") is not None:
        raise RequestError(f"train.repeat={train['repeat']} is for the command line of genlab train: this is one run")
    if train["sample_every"] is not None and (not isinstance(train["sample_every"], int) or train["sample_every"] < 0):
        raise RequestError(f"train.sample_every={train['sample_every']} must be a number of steps, or 0 for no samples")
    if not 0 <= train["ema"] < 1:
        raise RequestError(f"train.ema={train['ema']} must be at least 0 (no averaging) and below 1")
    if train["patience"] is not None and (not isinstance(train["patience"], int) or train["patience"] < 1):
        raise RequestError(f"train.patience={train['patience']} must be a number of validations, or null")
