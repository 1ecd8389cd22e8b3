"""The results of a sweep: one row for each run, on the screen and in sweep.csv.

The table is sorted by the validation value, so that users choose a model by this value and not by the test value beside
it. Runs without a validation value (a GAN has none) follow in the order of their numbers, then runs that are not
finished, then runs that failed. If runs differ in their seed alone, a second table shows means over seeds.
"""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from genlab.core import RequestError
from genlab.results import table
from genlab.results.groups import grouped
from genlab.results.run_folders import read_runs

FAILED = "error.txt"
UNFINISHED = "not finished"


def runs(folder: Path) -> list[Path]:
    """The run folders of a sweep."""
    marks = ("config.yaml", "results.json", FAILED)
    folders = [path for path in folder.iterdir() if any((path / mark).is_file() for mark in marks)]
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def report(folder: Path) -> list[dict[str, Any]]:
    """Write sweep.csv and show it; returns the rows, best first."""
    rows = sorted((_row(run) for run in runs(folder)), key=_sorting_key)
    if not rows:
        return rows
    with open(folder / "sweep.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _show(rows)
    print(folder / "sweep.csv")
    if not all(row["failed"] for row in rows):
        _show_groups(folder)
    return rows


def _show_groups(folder: Path) -> None:
    """Print the table of `genlab compare`, if there are several seeds of one setting."""
    try:
        found, failures = read_runs("hydra.sweep.dir", [str(folder)])
    except RequestError as error:  # files that somebody has damaged; the sweep itself is done
        print(f"no table over seeds: {error}", file=sys.stderr)
        return
    groups = grouped(found)
    if any(group.measured is not None and len(group.counted) > 1 for group in groups):
        table.show(table.comparison(groups, failures), "over seeds")


def objective(details: dict[str, Any]) -> float | None:
    """The number by which runs are compared: bits/dim of a likelihood, else the loss; None if there is neither."""
    return details.get("bits_per_dim", details.get("loss"))


def _row(run: Path) -> dict[str, Any]:
    command = run / "command.txt"
    words = shlex.split(command.read_text().splitlines()[0])[2:] if command.is_file() else []
    row: dict[str, Any] = {"run": run.name, "overrides": " ".join(words), "valid": None, "failed": ""}
    if (run / "results.json").is_file():
        results = json.loads((run / "results.json").read_text())
        row["valid"] = objective(results["valid"])
        return {**row, "test": objective(results["test"]), "steps": results["steps"], "seconds": results["seconds"]}
    error = run / FAILED
    row["failed"] = error.read_text().strip() if error.is_file() else UNFINISHED
    return {**row, **dict.fromkeys(("test", "steps", "seconds"))}


def _sorting_key(row: dict[str, Any]) -> tuple[int, float]:
    """(class of the row, validation value): rows with a value come first, the smallest first."""
    if row["failed"]:
        return (2 if row["failed"] == UNFINISHED else 3, 0.0)
    return (1, 0.0) if row["valid"] is None else (0, row["valid"])


def _show(rows: list[dict[str, Any]]) -> None:
    console = Console()
    cells = [[_cell(value) for value in row.values()] for row in rows]
    if not console.is_terminal:
        for each in [list(rows[0]), *cells]:
            print("\t".join(each))
        return
    drawn = Table(title="runs, best validation first", title_justify="left")
    for name in rows[0]:
        drawn.add_column(name)
    for each in cells:
        drawn.add_row(*each)
    console.print(drawn)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
