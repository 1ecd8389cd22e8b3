"""One HTML page of runs that needs nothing but itself: plotly's script, the curves and the pictures are in the file.

Run folders may come from strangers, and their texts end up here. Jinja2 escapes every text that it inserts, the data
of the plots is JSON without `<`, and the script only ever sets text, never HTML. If that were not enough: the page's
content security policy allows the scripts that are listed by their hash, and no connection to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genlab.core import RequestError
from genlab.results import settings, table
from genlab.results.curves import comparable, validation
from genlab.results.groups import Group, grouped, measured, number, value
from genlab.results.page.pictures import pictures
from genlab.results.run_folders import RunFolder, printable
from genlab.train.provenance import genlab_version

HERE = Path(__file__).parent
# Colours of the settings, by Okabe and Ito (2008), which people with any kind of colour vision can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b", "#5f6b6d", "#b8a900")
RESULTS = ("seed", "state", "valid", "test", "± images", "kind", "measured", "parameters", "steps", "minutes")


@dataclass(frozen=True)
class Cell:
    """A cell of the table of runs: its text, and the number by which it is sorted if it is one."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Row:
    """A run on the page. `index` says which one everywhere on the page."""

    index: int
    name: str
    label: str
    colour: str
    cells: list[Cell]


def check_packages() -> None:
    """Raise RequestError if a package that the page needs is missing."""
    for package in ("plotly", "jinja2"):
        if find_spec(package) is None:
            raise RequestError(f"genlab report needs the package {package}: pip install {package}")


def render(runs: Sequence[RunFolder], failures: Sequence[str]) -> str:
    """The text of the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    groups = grouped(runs)
    runs = [run for group in groups for run in group.runs]
    names = short_names(runs)
    columns, rows = _run_table(groups, names)
    scripts = {"plotly": get_plotlyjs(), "script": (HERE / "script.js").read_text(encoding="utf-8")}
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("template.html").render(
        scripts={name: _trusted(text) for name, text in scripts.items()},
        style=_trusted((HERE / "style.css").read_text(encoding="utf-8")),
        hashes=[f"'sha256-{_hash(text)}'" for text in scripts.values()],
        data=_trusted(_json(_data(runs, rows, comparable(groups)))),
        comparison=table.comparison(groups, failures),
        results=len(table.RESULTS),
        colours=[_colour(i) for i in range(len(groups))],
        columns=columns,
        rows=rows,
        config=_config_table(runs),
        version=genlab_version(),
    )


def short_names(runs: Sequence[RunFolder]) -> list[str]:
    """The names of the runs without the folders that all of them are in."""
    parts = [run.folder.parts for run in runs]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return [printable(str(Path(*each[shared:]))) for each in parts]


def _run_table(groups: Sequence[Group], names: Sequence[str]) -> tuple[list[str], list[Row]]:
    """(names of the columns, a row for every run in the order of the groups)."""
    keys = settings.differing([group.settings for group in groups])
    columns = [*RESULTS, *map(settings.title, keys)]
    rows: list[Row] = []
    for i, group in enumerate(groups):
        label = printable(settings.describe(group.settings, keys))
        cells = [_setting(group, key) for key in keys]
        for run in group.runs:
            rows.append(Row(len(rows), names[len(rows)], label, _colour(i), [*_results(run, group), *cells]))
    return columns, rows


def _colour(group: int) -> str:
    return COLOURS[group % len(COLOURS)]


def _setting(group: Group, key: str) -> Cell:
    found = group.settings.get(key)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return Cell(printable(settings.cell(group.settings, key)), found if is_number else None)


def _results(run: RunFolder, group: Group) -> list[Cell]:
    what, results = measured(run) if run.results is not None else None, run.results or {}
    seconds = number(results, "seconds")
    mark = "≤ " if group.kind.startswith("bound") else ""
    state = f"failed: {run.failed}" if run.failed and run.results is None else run.state
    error = number(run.result("test"), "standard_error") if what is not None else None
    return [
        _number(run.seed, "d"),
        Cell(state),
        *(_number(value(run, split), ".4f", mark) for split in ("valid", "test")),
        _number(error, ".4f"),
        Cell(group.kind if run.results is not None else "-"),
        Cell(what.short if what is not None else "-"),
        _number(number(results, "parameters"), ",.0f"),
        _number(number(results, "steps"), ",.0f"),
        _number(None if seconds is None else seconds / 60, ".2f"),
    ]


def _number(found: float | None, form: str, mark: str = "") -> Cell:
    return Cell("-") if found is None else Cell(mark + format(found, form), found)


def _config_table(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """A row for every key of the configs: its name, the value of each run, and which values are not the usual one."""
    configs = [settings.flat(run.config) for run in runs]
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        cells = [printable(settings.cell(config, key)) for config in configs]
        usual = max(cells, key=cells.count)
        rows.append({"key": printable(key), "cells": [(cell, cell != usual) for cell in cells]})
    return rows


def _data(runs: Sequence[RunFolder], rows: Sequence[Row], measures: Mapping[Path, str]) -> dict[str, Any]:
    """What the script draws: for each run its curves, what they measure (`measures`), and its pictures."""
    drawn = []
    for run, row in zip(runs, rows, strict=True):
        drawn.append({
            "name": row.name, "label": row.label, "colour": row.colour, "measure": measures[run.folder],
            "curves": run.curves(), "compared": validation(run)[0], "pictures": pictures(run.folder),
        })  # fmt: skip
    return {"runs": drawn}


def _json(data: Any) -> str:
    """JSON that can stand inside a <script> element: it has no `<`, so no tag begins or ends in it."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _trusted(text: str) -> Any:
    """A text of genlab, plotly or `_json`, which is inserted as it is."""
    from markupsafe import Markup

    return Markup(text)
