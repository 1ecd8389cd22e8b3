"""Training runs of scripts/gpu_stages.py, and what is read from their folders."""

from __future__ import annotations

import csv
import itertools
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from gpu_session import Stage

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))  # for `trainees`, which compares two run folders


@dataclass(frozen=True)
class Trained:
    """A run that has ended.

    `losses`: (step, training loss in bits/dim or as the model has it). `images_per_second`: by the median of the later
    half of the steps. `start`: seconds from the start of the process to the end of the slow first steps.
    """

    losses: list[tuple[int, float]]
    results: dict[str, Any]
    images_per_second: float
    start: float
    steps: int

    @property
    def valid(self) -> str:
        """The validation value as text."""
        value = self.results.get("valid", {}).get("bits_per_dim")
        return "-" if value is None else f"{value:.5f}"


def trained(stage: Stage, name: str, words: list[str], *options: str) -> Trained:
    """Run `genlab train words…` to its end, in the folder NAME of the stage."""
    folder, times = stage.work / name, stage.work / f"{name}.json"
    stage.run(name, HERE / "gpu_child.py", times, *options, "train", *words, f"hydra.run.dir={folder}")
    results = json.loads((folder / "results.json").read_text())
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    images_per_second, start = speed(json.loads(times.read_text()), settings)
    column = next(c for c in columns(folder) if c.startswith("train/"))
    return Trained(curve(folder, column), results, images_per_second, start, results["steps"])


def speed(times: dict[str, Any], settings: dict[str, Any]) -> tuple[float, float]:
    """(images per second, seconds of the start), see `Trained`."""
    batches = times["batches"]
    steps = [b - a for a, b in itertools.pairwise(batches)]
    if not steps:
        return float("nan"), float("nan")
    usual = statistics.median(steps[len(steps) // 2 :])
    slow = sum(max(0.0, step - usual) for step in steps[:3])
    return settings["data"]["batch_size"] / usual, batches[0] - times["began"] + slow


def columns(run: Path) -> list[str]:
    """The columns of metrics.csv."""
    return (run / "metrics.csv").read_text().splitlines()[0].split(",")


def curve(run: Path, column: str) -> list[tuple[int, float]]:
    """(step, value) of a column of metrics.csv, where it has one."""
    if not (run / "metrics.csv").exists():
        return []
    with open(run / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]


def last_step(run: Path) -> int:
    """The step of last.ckpt, 0 if there is none."""
    if not (run / "checkpoints" / "last.ckpt").exists():
        return 0
    from genlab.train.checkpoint import read

    return int(read(run / "checkpoints" / "last.ckpt")["genlab"]["step"])


def outcome(run: Path) -> dict[str, Any]:
    """Everything that a run leaves behind that does not depend on its time and place."""
    import trainees

    return trainees.outcome(run)


def difference(ours: Any, theirs: Any) -> str | None:
    """Where two values of `trainees.outcome` differ, None if they are equal to the bit."""
    from trainees import same

    try:
        same(ours, theirs)
    except AssertionError as error:
        return f"differs at {str(error).splitlines()[0]}"
    return None
