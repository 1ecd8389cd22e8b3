"""`genlab train`: train a model on data, then evaluate its best weights once on the test split; with -m, a sweep."""

from __future__ import annotations

from genlab.processes import sweep, training
from genlab.request.compose import Request


def command(request: Request) -> int:
    """Train in a new folder; returns the exit status. With -m, there is a run for every combination of values."""
    if request.sweep:
        return sweep.run(request)
    training.from_request(request)
    return 0
