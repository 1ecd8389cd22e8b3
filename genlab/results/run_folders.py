"""Find run folders, and read what they hold: the config, the results, the curves. Nothing in them is trusted.

A run is a folder with a config.yaml. It is finished if it has a results.json. A job of a sweep that failed has an
error.txt, and it has no config.yaml if it failed before its run began.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.build import untrusted
from genlab.core import RequestError
from genlab.system.failures import shortened
from genlab.train.metrics_file import read_metrics

CONFIG, RESULTS, FAILED = "config.yaml", "results.json", "error.txt"
LARGEST_RESULTS = 4 << 20  # bytes of a results.json; genlab's have about 2,000
SECTIONS = ("model", "data", "optim", "trainer", "train", "names")


@dataclass(frozen=True)
class RunFolder:
    """A run: its folder, its config as plain values, the content of results.json, and the reason if it failed.

    `results` is None if there is no results.json, and `failed` is empty if the run did not fail.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any] | None
    failed: str = ""

    @property
    def name(self) -> str:
        """The path of the folder, as printable text."""
        return printable(str(self.folder))

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config["seed"])

    @property
    def state(self) -> str:
        """One word: finished, unfinished or failed."""
        return "finished" if self.results is not None else "failed" if self.failed else "unfinished"

    def result(self, split: str) -> dict[str, Any]:
        """The numbers of a split ("test" or "valid"); {} if the run is not finished."""
        return self.results[split] if self.results is not None else {}

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Metric, such as "valid/bits_per_dim" -> its finite values as (step, value), of metrics.csv."""
        rows = read_metrics(self.folder / "metrics.csv")
        points = {
            name: [(int(row["step"]), float(row[name])) for row in rows if row[name] != ""]
            for name in (rows[0] if rows else {})
            if name != "step"
        }
        return {name: [(step, value) for step, value in each if math.isfinite(value)] for name, each in points.items()}


def read_runs(key: str, words: Iterable[str]) -> tuple[list[RunFolder], list[str]]:
    """The runs that `words` name, each once, and a sentence for every job of a sweep that failed before its run began.

    A word is a run folder, a folder with runs anywhere in it, or a pattern such as outputs/*/*. `key`: the name of the
    words in messages. Raises RequestError for a word that names no run, and for a run whose files are damaged.
    """
    folders: dict[str, Path] = {}
    for word in words:
        found = [run for place in _places(word) for run in _runs_within(place)]
        if not found:
            exists = Path(word).expanduser().exists()
            what = "no folder matches it" if glob.has_magic(word) and not exists else "it does not exist"
            raise RequestError(
                f"{key}: {printable(word)} names no run, because {'it holds no config.yaml' if exists else what}: give "
                "run folders, folders with runs in them, or patterns such as 'outputs/*/*'"
            )
        folders.update((os.path.realpath(each), each) for each in found)
    runs, failures = [], []
    for folder in folders.values():
        if (folder / CONFIG).is_file():
            runs.append(read_run(folder))
        else:
            failures.append(f"{printable(str(folder))} failed before its run began: {_reason(folder)}")
    if not runs:
        raise RequestError(f"{key}: {failures[0]}")
    return runs, failures


def read_run(folder: Path) -> RunFolder:
    """The run in a folder. Raises RequestError if its config.yaml or results.json is damaged."""
    config = untrusted.config_file(folder / CONFIG)
    for section in SECTIONS:
        if not isinstance(config.get(section), dict):
            raise RequestError(f"{folder / CONFIG} is not the config of a run: it has no section {section}")
    if type(config.get("seed")) is not int:
        raise RequestError(f"{folder / CONFIG} is not the config of a run: its seed is no whole number")
    return RunFolder(folder, config, _results(folder / RESULTS), _reason(folder))


def printable(text: str) -> str:
    """The text without characters that would control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _places(word: str) -> list[Path]:
    """The folders that a word names. The name of an existing folder is not read as a pattern."""
    path = Path(word).expanduser()
    if path.is_dir():
        return [path]
    return sorted(Path(each) for each in glob.glob(str(path)) if Path(each).is_dir())


def _runs_within(place: Path) -> list[Path]:
    """`place` if it is a run, otherwise the runs anywhere in it, numbers in their order."""
    runs = []
    for folder, below, files in os.walk(place):
        if {CONFIG, FAILED} & set(files):
            runs.append(Path(folder))
            below.clear()
        below.sort(key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
    return runs


def _results(path: Path) -> dict[str, Any] | None:
    """The content of results.json; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST_RESULTS:
            raise ValueError
        results = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(results, dict) or not all(isinstance(results.get(part), dict) for part in ("test", "valid")):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is damaged: it is not what genlab writes at the end of a run") from error
    return results


def _reason(folder: Path) -> str:
    """Why the job failed, in one line; empty if it did not fail."""
    path = folder / FAILED
    return shortened(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""
