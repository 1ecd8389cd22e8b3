"""metrics.csv, and the loggers a user may add to it.

metrics.csv has a row per logged step, a column per metric, and no clock in it: a run that was killed and resumed leaves
the same file as one that was not. TensorBoard and Weights & Biases are Lightning's, imported when they are chosen.
"""

from __future__ import annotations

import csv
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from genlab.core import RequestError, nearest
from genlab.train.checkpoint import atomically, write_text

KINDS = {"csv": None, "none": None, "tensorboard": "tensorboard", "wandb": "wandb"}


def check(kind: str) -> None:
    """A RequestError if there is no such logger or its package is missing."""
    if kind not in KINDS:
        raise RequestError(f"logger={kind} is unknown; {nearest(kind, KINDS)}")
    package = KINDS[kind]
    if package and find_spec(package) is None:
        raise RequestError(f"logger={kind} needs the package {package}: pip install {package}")


def make(settings: dict[str, Any], folder: Path, step: int, config: dict[str, Any]) -> list[Logger]:
    """The loggers of a run in `folder` that stands at optimiser step `step`."""
    kind = settings["kind"]
    if kind == "none":
        return []
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv", step)]
    if kind == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", purge_step=step + 1 if step else None))
    elif kind == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        loggers.append(
            WandbLogger(
                name=folder.name, id=_wandb_id(folder), resume="allow", save_dir=folder, project=settings["project"],
                config=config,
            )
        )  # fmt: skip
    return loggers


@contextmanager
def closing(loggers: list[Logger]) -> Iterator[None]:
    """End the tracker's run with ours, also when ours fails: in a sweep the next one would write into it."""
    status = 1
    try:
        yield
        status = 0
    finally:
        for logger in loggers:
            if type(logger).__name__ == "WandbLogger":
                import wandb  # Lightning leaves this to the end of the process; all else it closes

                wandb.finish(exit_code=status)


def _wandb_id(folder: Path) -> str:
    """The run's identity at Weights & Biases, kept in the folder so that a resumed run continues the same curves."""
    path = folder / "wandb" / "id.txt"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text().strip()


class MetricsFile(Logger):
    """A CSV file whose columns are the union of all metrics so far; cells without a value are empty.

    `step`: rows of later steps, left by a run that went beyond its last checkpoint, are dropped. The row of a step is
    written when a metric of a later step arrives or at `save`.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        super().__init__()
        self.path = path
        self._row: dict[str, Any] = {}
        rows = self._read()
        # A row cut short by a kill has cells missing (None); it belongs to a step beyond the checkpoint anyway.
        kept = [row for row in rows if None not in row.values() and int(row["step"]) <= step]
        self._columns = [c for c in (rows[0] if rows else {}) if any(row[c] for row in kept)]
        self._rewrite(kept)

    name = "csv"
    version = ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Collect the metrics of a step."""
        if self._row and self._row["step"] != step:
            self.save()
        self._row.update({"step": step, **metrics})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml stands beside the file."""

    def save(self) -> None:
        """Write the row collected so far."""
        if not self._row:
            return
        new = [name for name in self._row if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            self._rewrite(rows)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow(self._row)
        self._row = {}

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _writer(self, file: Any) -> csv.DictWriter:
        # "ignore": rows read back may still have the columns of rows that were dropped, all empty
        return csv.DictWriter(file, self._columns, restval="", extrasaction="ignore", lineterminator="\n")

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with atomically(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            if self._columns:
                writer = self._writer(file)
                writer.writeheader()
                writer.writerows(rows)
