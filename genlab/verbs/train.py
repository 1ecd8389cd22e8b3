"""`genlab train`: train a model on data, then evaluate its best weights once on the test split; with -m, a sweep."""

from __future__ import annotations

from pathlib import Path

from genlab.processes import sweep, training
from genlab.request import recipe, start_from
from genlab.request.compose import Request, split_hydra


def command(request: Request) -> int:
    """Train in a new folder; returns the exit status. With -m, there is a run for every combination of values."""
    if request.sweep:
        return sweep.run(request)
    request, note = recipe.taken(request)
    config, hydra = split_hydra(start_from.composed(request))
    named = any(word.startswith("hydra.run.dir=") for word in request.overrides)
    training.run(config, Path(hydra.run.dir), request.command, or_next=not named, note=note)
    return 0
