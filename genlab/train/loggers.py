"""metrics.csv, and the loggers that a user can add.

metrics.csv has a row for each logged step and a column for each metric. It has no times, so a run that was killed and
resumed writes the same file as an uninterrupted one. Lightning's CSVLogger is not used: it can neither continue a file
nor drop the rows that were written after the last checkpoint.

The loggers for TensorBoard and Weights & Biases are Lightning's, imported when they are chosen.
"""

from __future__ import annotations

import csv
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from genlab.core import RequestError, RunError, nearest
from genlab.system.atomic import atomically, write_text

KINDS = {"csv": None, "none": None, "tensorboard": "tensorboard", "wandb": "wandb"}


def check(kind: str) -> None:
    """Raise RequestError if there is no such logger or its package is missing."""
    if kind not in KINDS:
        raise RequestError(f"logger={kind} is unknown; {nearest(kind, KINDS)}")
    package = KINDS[kind]
    if package and find_spec(package) is None:
        raise RequestError(f"logger={kind} needs the package {package}: pip install {package}")


def make(settings: dict[str, Any], folder: Path, step: int, config: dict[str, Any]) -> list[Logger]:
    """The loggers of a run in `folder` that has done `step` optimiser steps. `config` is sent to Weights & Biases."""
    kind = settings["kind"]
    if kind == "none":
        return []
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv", step)]
    if kind == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", purge_step=step + 1 if step else None))
    elif kind == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        settings_file = folder / "wandb" / "settings"
        if settings_file.exists():  # wandb would send the user's key to the server that is named in it
            raise RequestError(f"{settings_file} is not of this run: genlab never writes it; delete it")
        loggers.append(
            WandbLogger(
                name=folder.name, id=_wandb_id(folder), resume="allow", save_dir=folder, project=settings["project"],
                config=config,
            )
        )  # fmt: skip
    return loggers


@contextmanager
def closing(loggers: list[Logger]) -> Iterator[None]:
    """End the run at Weights & Biases when ours ends or fails, or the next run of a sweep would write into it."""
    status = 1
    try:
        yield
        status = 0
    finally:
        for logger in loggers:
            if type(logger).__name__ == "WandbLogger":
                import wandb  # Lightning ends all other loggers, but this one only at the end of the process

                wandb.finish(exit_code=status)


def _wandb_id(folder: Path) -> str:
    """The run's identity at Weights & Biases, kept in the folder so that a resumed run continues the same curves."""
    path = folder / "wandb" / "id.txt"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    identity = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identity):  # it becomes part of a path
        raise RequestError(f"{path} is not the name of a run at Weights & Biases: delete it to begin another curve")
    return identity


class MetricsFile(Logger):
    """A CSV file whose columns are all metrics so far; cells without a value are empty.

    `step`: the step of the checkpoint that the run continues from. Rows of later steps, which the run wrote before it
    was killed, are dropped. The row of a step is written when a metric of a later step arrives, or at `save`.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        super().__init__()
        self.path = path
        self._row: dict[str, Any] = {}
        rows = read_metrics(path)
        kept = [row for row in rows if int(row["step"]) <= step]
        self._columns = [c for c in (rows[0] if rows else {}) if any(row[c] for row in kept)]
        self._rewrite(kept)

    name = "csv"
    version = ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Collect the metrics of a step."""
        if self._row and self._row["step"] != step:
            self._append()
        self._row.update({"step": step, **metrics})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml is in the same folder."""

    def save(self) -> None:
        """Write the row collected so far and flush it to the disk. The checkpoint that is written next relies on it."""
        self._append()
        with _one_sentence_error(self.path), open(self.path, "rb+") as file:
            os.fsync(file.fileno())

    def _append(self) -> None:
        if not self._row:
            return
        new = [name for name in self._row if name not in self._columns]
        if new:
            rows = read_metrics(self.path)
            self._columns += new
            self._rewrite(rows)
        with _one_sentence_error(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow(self._row)
        self._row = {}

    def _writer(self, file: Any) -> csv.DictWriter:
        # "ignore": rows from the file may have empty cells in columns that only dropped rows used
        return csv.DictWriter(file, self._columns, restval="", extrasaction="ignore", lineterminator="\n")

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with (
            _one_sentence_error(self.path),
            atomically(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            if self._columns:
                writer = self._writer(file)
                writer.writeheader()
                writer.writerows(rows)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv; none if there is no file. A byte order mark, which some editors write, is skipped.

    A last row that a kill or a power cut has left incomplete is dropped: it belongs to a step after the last
    checkpoint. Other damage is a RequestError.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"it cannot be read ({type(error).__name__})") from error
    lines = text.rstrip("\0").splitlines()
    if "\0" in "".join(lines[:-1]):
        raise _damaged(path, "it holds zero bytes")
    if not lines:
        return []
    try:
        reader = csv.DictReader(line.replace("\0", "") for line in lines)
        rows = list(reader)
    except csv.Error as error:
        raise _damaged(path, f"it is not CSV ({error})") from error
    columns = reader.fieldnames or []
    if "step" not in columns or len(set(columns)) < len(columns):
        raise _damaged(path, f"its first line is {lines[0][:60]!r}: it has no column step, or two columns of one name")
    sound = [_is_sound(row) for row in rows]
    if not all(sound[:-1]):
        raise _damaged(path, f"row {sound.index(False) + 1} has no step, or something other than a number in a column")
    return rows if all(sound) else rows[:-1]


def _is_sound(row: dict[Any, Any]) -> bool:
    """True if a row has as many cells as there are columns, and numbers or nothing in them.

    csv.DictReader gives None for a missing cell, and the key None to cells that are too many.
    """
    try:
        cells = [float(cell) for cell in row.values() if cell != ""]
        return int(row["step"]) >= 0 and None not in row and bool(cells)
    except (TypeError, ValueError):
        return False


def _damaged(path: Path, why: str) -> RequestError:
    return RequestError(
        f"{path} is damaged: {why}; mend it, or move it away and the run goes on without its earlier rows"
    )


@contextmanager
def _one_sentence_error(path: Path) -> Iterator[None]:
    """Turn an OSError into a RunError that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror or error}") from error
