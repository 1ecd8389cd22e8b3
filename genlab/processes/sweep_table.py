"""The results of a sweep: one row for each run, on the screen and in sweep.csv.

The table is sorted by the validation value: a sweep is for choosing, so it must not look at the test split. Runs
without such a number (a GAN has none) follow in their own order, then those not finished, then those that failed.
"""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FAILED = "error.txt"
UNFINISHED = "not finished"


def runs(folder: Path) -> list[Path]:
    """The run folders of a sweep."""
    marks = ("config.yaml", "results.json", FAILED)
    found = [path for path in folder.iterdir() if any((path / mark).is_file() for mark in marks)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def report(folder: Path) -> list[dict[str, Any]]:
    """Write sweep.csv and show it; returns the rows, best first."""
    rows = sorted((_row(run) for run in runs(folder)), key=_place)
    if not rows:
        return rows
    with open(folder / "sweep.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _show(rows)
    print(folder / "sweep.csv")
    return rows


def value(details: dict[str, Any]) -> float | None:
    """What a run is judged by: bits/dim of a likelihood, else its loss; None where there is no such number."""
    return details.get("bits_per_dim", details.get("loss"))


def _row(run: Path) -> dict[str, Any]:
    command = run / "command.txt"
    words = shlex.split(command.read_text().splitlines()[0])[2:] if command.is_file() else []
    row: dict[str, Any] = {"run": run.name, "overrides": " ".join(words), "valid": None, "failed": ""}
    if (run / "results.json").is_file():
        results = json.loads((run / "results.json").read_text())
        row["valid"] = value(results["valid"])
        return {**row, "test": value(results["test"]), "steps": results["steps"], "seconds": results["seconds"]}
    error = run / FAILED
    row["failed"] = error.read_text().strip() if error.is_file() else UNFINISHED
    return {**row, **dict.fromkeys(("test", "steps", "seconds"))}


def _place(row: dict[str, Any]) -> tuple[int, float]:
    """The sorting key of a row: its number, or after all rows that have one."""
    if row["failed"]:
        return (2 if row["failed"] == UNFINISHED else 3, 0.0)
    return (1, 0.0) if row["valid"] is None else (0, row["valid"])


def _show(rows: list[dict[str, Any]]) -> None:
    console = Console()
    cells = [[_cell(value) for value in row.values()] for row in rows]
    if not console.is_terminal:
        for each in cells:
            print("\t".join(each))
        return
    table = Table(title="runs, best validation first", title_justify="left")
    for name in rows[0]:
        table.add_column(name)
    for each in cells:
        table.add_row(*each)
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
