"""The loggers of a run: metrics.csv, and a tracker that a user can add.

A tracker (`trackers.py`) also gets the grids of pictures that the run writes, its config, and the numbers of the final
test. A tracker that cannot begin is refused before training. One that fails later is left out with one sentence, and
the run goes on: its numbers and pictures are in its folder anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pytorch_lightning.loggers import Logger

from genlab.core import Interrupted, RequestError, nearest
from genlab.system.failures import shortened
from genlab.train.metrics_file import MetricsFile
from genlab.train.run import Run
from genlab.train.trackers import TRACKERS

KINDS = ("csv", "none", *TRACKERS)


def check(kind: str) -> None:
    """Raise RequestError if there is no such logger or its package is missing."""
    if kind not in KINDS:
        raise RequestError(f"logger={kind} is unknown; {nearest(kind, KINDS)}")
    if kind in TRACKERS and find_spec(TRACKERS[kind].package) is None:
        raise RequestError(f"logger={kind} needs the package {kind}: {TRACKERS[kind].install}")


@contextmanager
def opened(run: Run) -> Iterator[list[Logger]]:
    """The loggers of a run, closed at the end; none on ranks other than zero. It reads the run's checkpoint."""
    if dist.is_initialized() and dist.get_rank() > 0:
        yield []
        return
    step = run.checkpoint["genlab"]["step"] if run.checkpoint else 0
    loggers = make(run.config["logger"], run.folder, step, dict(run.config))
    status = 1
    try:
        yield loggers
        status = 0
    except Interrupted:
        status = 0  # it is to be resumed
        raise
    finally:
        for logger in trackers(loggers):
            logger.close(status)


def make(settings: dict[str, Any], folder: Path, step: int, config: dict[str, Any]) -> list[Logger]:
    """The loggers of a run in `folder` that has done `step` optimiser steps. `config`: the whole config, for a tracker.

    Raises RequestError if a tracker cannot begin.
    """
    kind = settings["kind"]
    if kind == "none":
        return []
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv", step)]
    if kind in TRACKERS:
        try:
            tracker = TRACKERS[kind](folder, step, settings.get("project", "genlab"), config)
        except RequestError:
            raise
        except Exception as error:  # whatever the package raises: no account, no network, no room on the disk
            raise RequestError(
                f"logger={kind} cannot begin ({_in_short(error)}); to train without it: genlab resume "
                f"run={folder} logger=csv"
            ) from error
        loggers.append(Guarded(kind, tracker))
    return loggers


class Guarded(Logger):
    """A tracker as a logger of Lightning. When it fails, it says so once and does nothing from then on."""

    version = ""

    def __init__(self, kind: str, tracker: Any) -> None:
        super().__init__()
        self.kind, self._tracker = kind, tracker

    @property
    def name(self) -> str:
        """The value of `logger=`."""
        return self.kind

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass the numbers of a step on."""
        self._try(f"at step {step}", lambda: self._tracker.numbers(metrics, step))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Pass a PNG file on, for example samples/step=000300.png as `samples`."""
        self._try(f"at step {step}", lambda: self._tracker.picture(name, path, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the tracker has got the config when it was made."""

    def close(self, status: int) -> None:
        """Write what is left. `status`: 0, or 1 if the run has failed."""
        self._try("at the end", lambda: self._tracker.close(status))

    def _try(self, when: str, action: Callable[[], Any]) -> None:
        if self._tracker is None:
            return
        try:
            action()
        except Exception as error:  # whatever the package raises
            self._tracker = None
            print(
                f"genlab: logger={self.kind} failed {when} ({_in_short(error)}); the run goes on without it, and its "
                "folder has every number and picture",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def trackers(loggers: Iterable[Any]) -> list[Guarded]:
    """Those of the loggers that are trackers."""
    return [logger for logger in loggers if isinstance(logger, Guarded)]


def _in_short(error: Exception) -> str:
    return shortened(f"{type(error).__name__}: {' '.join(str(error).split())}")
