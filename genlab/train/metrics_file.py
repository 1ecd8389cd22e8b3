"""metrics.csv: a row for each logged step and a column for each metric.

It has no times, so a run that was killed and resumed writes the same file as an uninterrupted one. Lightning's
CSVLogger is not used: it can neither continue a file nor drop the rows that were written after the last checkpoint.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from genlab.core import RequestError, RunError
from genlab.system.atomic import atomically


class MetricsFile(Logger):
    """A CSV file whose columns are all metrics so far; cells without a value are empty.

    `step`: the step of the checkpoint that the run continues from; 0 for a run that begins. Rows of later steps, which
    the run wrote before it was killed, are dropped. The row of a step is written when a metric of a later step arrives,
    or at `save`.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        super().__init__()
        self.path = path
        self._row: dict[str, Any] = {}
        rows = read_metrics(path)
        kept = [row for row in rows if step and int(row["step"]) <= step]
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
