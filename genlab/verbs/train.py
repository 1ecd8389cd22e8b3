"""`genlab train`: train a model on data, then evaluate its best weights once on the test split; with -m, a sweep."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from genlab.processes import sweep, training
from genlab.request import length, start_from
from genlab.request.compose import Request, split_hydra
from genlab.request.folders import groups


def command(request: Request) -> int:
    """Train in a new folder; returns the exit status. With -m, there is a run for every combination of values."""
    if request.sweep:
        return sweep.run(request)
    config, hydra = split_hydra(start_from.composed(request))
    named = any(word.startswith("hydra.run.dir=") for word in request.overrides)
    training.run(config, Path(hydra.run.dir), request.command, or_next=not named, note=_usual_length(request, config))
    return 0


def _usual_length(request: Request, config: DictConfig) -> str:
    """A line for a run that was given no length: how long it will train, and the experiment of its model and data on
    this kind of device, if there is one. "" for other runs.
    """
    given = {o.key_or_group for o in request.parse(request.overrides)} & {*length.KEYS, "experiment"}
    if given or config.train.minutes != length.USUAL_MINUTES:
        return ""
    line = f"train.minutes={length.USUAL_MINUTES}: no length was given, and train.minutes= changes it"
    accelerator, names = config.trainer.accelerator, config.names
    gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    experiment = f"{'' if gpu else 'cpu_'}{names.model}_{names.data}"
    if experiment in groups(request.folders)["experiment"]:
        choices = request.check([f"experiment={experiment}"]).hydra.runtime.choices
        if choices["data"] == names.data:
            line += f"; experiment={experiment} has a length and settings for this model and data"
    return line
