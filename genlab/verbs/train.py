"""`genlab train`: train a model on data, then evaluate its best weights once on the test split; with -m, a sweep."""

from __future__ import annotations

from genlab.processes import repeat, sweep, training
from genlab.request.compose import Request


def command(request: Request) -> int:
    """Train in a new folder; returns the exit status. With -m or train.repeat, there are several runs."""
    request = repeat.repeated(request)
    if request.sweep:
        return sweep.run(request)
    training.from_request(request)
    return 0
