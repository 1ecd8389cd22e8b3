"""`genlab train -m`: many runs, with Hydra's own launcher and sweeper, joblib, submitit or Optuna; then one table.

Each job is an ordinary run in its own folder, with the command that would repeat it alone. A job that fails is named in
the table and does not take the others with it. The table is sorted by the validation value: a sweep chooses, so it
must not look at the test split.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from genlab.compose import Request, check_trust, split_hydra
from genlab.core import RequestError, RunError
from genlab.tasks import launch, train
from genlab.whole import atomically, write_text

FAILED = "error.txt"


def run(request: Request) -> int:
    """Check every value of the sweep, hand over to Hydra, print the table. Exit status 1 if a job failed."""
    if launch.world() > 1:
        raise RequestError("-m starts its runs itself: call it once, without torchrun, and set trainer.devices")
    for words in _alternatives(request):
        request.check(words)
    GlobalHydra.instance().clear()
    before = sys.argv
    sys.argv = ["genlab", *request.overrides, *request.compose_arguments(), "-m"]
    try:
        hydra.main(version_base="1.3", config_path=str(request.folders[0]), config_name="train")(job)()
    except SystemExit as stop:  # Hydra has explained what went wrong
        if stop.code:
            return 1
    finally:
        sys.argv = before
    return 1 if Summary.failed else 0


def job(config: DictConfig) -> float:
    """One run of the sweep; the validation value for the sweeper to minimise, infinite for a run that failed."""
    here = HydraConfig.get()
    task, _ = split_hydra(OmegaConf.merge({"hydra": here}, config))  # type: ignore[arg-type]
    folder = Path(here.runtime.output_dir)
    words = list(here.overrides.task)
    check_trust(task, Request("train", [], command="").parse(words))
    print(f"[{folder.name}] {' '.join(words)}", file=sys.stderr)
    try:
        results = train.run(task, folder, shlex.join(["genlab", "train", *words]))
    except Exception as error:
        if os.environ.get("GENLAB_DEBUG") == "1":
            raise
        folder.mkdir(parents=True, exist_ok=True)
        known = isinstance(error, (RequestError, RunError))
        sentence = str(error) if known else f"{type(error).__name__}: {error}"
        write_text(folder / FAILED, sentence + "\n")
        write_text(folder / "command.txt", shlex.join(["genlab", "train", *words]) + "\n")
        print(f"[{folder.name}] failed: {sentence}", file=sys.stderr)
        return math.inf
    return _value(results["valid"])


class Summary(Callback):
    """Hydra's callback at the end of a sweep: the table on the screen and in sweep.csv."""

    failed = 0

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read the run folders, best first."""
        folder = Path(config.hydra.sweep.dir)
        rows = sorted((_row(run) for run in _runs(folder)), key=lambda row: row["valid"])
        Summary.failed = sum(row["failed"] != "" for row in rows)
        if not rows:
            return
        with atomically(folder / "sweep.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        _show(rows)
        print(folder / "sweep.csv")


def _alternatives(request: Request) -> list[list[str]]:
    """Overrides of one job for each value in the sweep, other keys at their first: every word is checked once."""
    choices: list[list[str]] = []
    for o in request.parse(request.overrides):
        if o.is_sweep_override() and (o.is_choice_sweep() or o.is_range_sweep()):
            choices.append([f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()])
        elif o.is_sweep_override():
            choices.append([])  # a continuous range is the sweeper's own business
        else:
            choices.append([str(o.input_line)])
    most = max((len(values) for values in choices), default=0)
    return [[values[min(i, len(values) - 1)] for values in choices if values] for i in range(max(most, 1))]


def _runs(folder: Path) -> list[Path]:
    runs = [path for path in folder.iterdir() if (path / "results.json").is_file() or (path / FAILED).is_file()]
    return sorted(runs, key=lambda path: (len(path.name), path.name))


def _row(run: Path) -> dict[str, Any]:
    words = shlex.split((run / "command.txt").read_text())[2:]
    row: dict[str, Any] = {"run": run.name, "overrides": " ".join(words), "valid": math.inf, "failed": ""}
    if (run / FAILED).is_file():
        return {**row, "failed": (run / FAILED).read_text().strip(), **dict.fromkeys(("test", "steps", "seconds"), "")}
    results = json.loads((run / "results.json").read_text())
    row["valid"] = _value(results["valid"])
    return {**row, "test": _value(results["test"]), "steps": results["steps"], "seconds": results["seconds"]}


def _value(details: dict[str, Any]) -> float:
    """What a run is judged by: bits/dim of a likelihood, else its loss."""
    return details.get("bits_per_dim", details.get("loss", math.inf))


def _show(rows: list[dict[str, Any]]) -> None:
    console = Console()
    if not console.is_terminal:
        for row in rows:
            print("\t".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
        return
    table = Table(title="runs, best validation first", title_justify="left")
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
