"""The table of `genlab compare`: a row for every setting, on the screen, as CSV, or as LaTeX.

Numbers that cannot be compared are in different sets, numbered in the first column, with a rule between them. A note
for each set says what its numbers are. An upper bound is marked by ≤.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genlab.results import settings
from genlab.results.groups import Group, Statistic, notes
from genlab.results.run_folders import printable
from genlab.system.atomic import atomically, write_text

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "≤": r"$\leq$", "…": r"\dots{}",
}  # fmt: skip

RESULTS = ("runs", "valid", "test", "± images", "kind", "parameters", "steps", "minutes")  # the last columns


@dataclass(frozen=True)
class Comparison:
    """The table as text. `sets`: for every row, the number of its set, 0 for groups without a number."""

    columns: list[str]
    rows: list[list[str]]
    sets: list[int]
    notes: list[str]


def comparison(groups: Sequence[Group], more_notes: Sequence[str] = ()) -> Comparison:
    """The table of these groups."""
    keys = settings.differing([group.settings for group in groups])
    measured = list(dict.fromkeys(group.measured for group in groups if group.measured is not None))
    sets = [measured.index(group.measured) + 1 if group.measured is not None else 0 for group in groups]
    several = len(measured) > 1
    rows = [
        [
            *([str(number or "-")] if several else []),
            *(printable(settings.cell(group.settings, key)) for key in keys),
            *_results(group),
        ]
        for group, number in zip(groups, sets, strict=True)
    ]
    columns = [
        *(["set"] if several else []), *(printable(settings.title(key)) for key in keys),
        *RESULTS,
    ]  # fmt: skip
    return Comparison(columns, rows, sets, [*_explained(groups, measured), *notes(groups), *more_notes])


def show(table: Comparison, title: str) -> None:
    """Print the table on a terminal, or tab-separated lines elsewhere; then the notes."""
    console = Console()
    if console.is_terminal:
        drawn = Table(title=title, title_justify="left")
        for name in table.columns:
            drawn.add_column(Text(name))
        for i, row in enumerate(table.rows):
            ends = i + 1 < len(table.sets) and table.sets[i] != table.sets[i + 1]
            drawn.add_row(*map(Text, row), end_section=ends)
        console.print(drawn)
    else:
        for line in (table.columns, *table.rows):
            print("\t".join(line))
    print("\n".join(table.notes))


def save_csv(path: Path, groups: Sequence[Group], table: Comparison) -> None:
    """The table as CSV, with whole numbers and unrounded values in columns of their own."""
    keys = settings.differing([group.settings for group in groups])
    columns = [
        "set", *map(settings.title, keys), "runs", "not_counted", "test_data", "test_images", "unit", "kind", "valid",
        "valid_sd", "test", "test_sd", "test_standard_error", "parameters", "steps", "minutes",
    ]  # fmt: skip
    with atomically(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for group, number in zip(groups, table.sets, strict=True):
            what, seconds = group.measured, group.cost("seconds")
            values = [group.value(split) for split in ("valid", "test")]
            writer.writerow([
                number or "", *(settings.cell(group.settings, key) for key in keys),
                len(group.counted), len(group.repeats) + len(group.open),
                *((what.data, what.images, what.unit) if what else ("", "", "")), group.kind,
                *(cell for each in values for cell in ((each.mean, each.deviation) if each else (None, None))),
                group.error(), group.cost("parameters"), group.cost("steps"), seconds and seconds / 60,
            ])  # fmt: skip


def save_tex(path: Path, table: Comparison) -> None:
    """The table as LaTeX, for the package booktabs. The notes are comments."""
    lines = [
        "% by genlab compare; needs \\usepackage{booktabs}",
        *(f"% {note}" for note in table.notes),
        f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}",
        "\\toprule",
        _tex_row(table.columns),
    ]
    for i, row in enumerate(table.rows):
        if i == 0 or table.sets[i] != table.sets[i - 1]:
            lines.append("\\midrule")
        lines.append(_tex_row(row))
    write_text(path, "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""]))


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(TEX.get(c, c) for c in cell) for cell in cells) + r" \\"


def _results(group: Group) -> list[str]:
    """The cells that every table has: how many runs, their values, their cost."""
    counted, others = len(group.counted), len(group.repeats) + len(group.open)
    seconds = group.cost("seconds")
    return [
        f"{counted} of {counted + others}" if others else str(counted),
        *(_marked(group, split) for split in ("valid", "test")),
        _cell(group.error(), ".4f"),
        group.kind,
        _cell(group.cost("parameters"), ",.0f"),
        _cell(group.cost("steps"), ",.0f"),
        _cell(None if seconds is None else seconds / 60, ",.1f" if seconds and seconds > 600 else ".2f"),
    ]  # fmt: skip


def _marked(group: Group, split: str) -> str:
    """The value of a split, marked if it is a bound."""
    text = mean_and_deviation(group.value(split))
    return f"≤ {text}" if group.kind.startswith("bound") and text != "-" else text


def mean_and_deviation(statistic: Statistic | None) -> str:
    """Mean ± standard deviation over runs; the mean alone of a single run; "-" of none."""
    if statistic is None:
        return "-"
    deviation = "" if statistic.deviation is None else f" ± {statistic.deviation:.4f}"
    return f"{statistic.mean:.4f}{deviation}"


def _cell(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)


def _explained(groups: Sequence[Group], measured: Sequence[object]) -> list[str]:
    """What the numbers are, and what they can be compared with."""
    lines = [str(what) if len(measured) == 1 else f"set {i}: {what}" for i, what in enumerate(measured, 1)]
    if len(measured) > 1:
        lines.append("numbers of different sets cannot be compared: they are of other images or in other units")
    if any(group.counted for group in groups):
        lines.append("valid, test: mean ± standard deviation over seeds; ± images: standard error over the test images")
    if any(group.kind.startswith("bound") for group in groups):
        lines.append("≤ marks an upper bound: the exact number may be smaller")
    if any(group.counted and group.measured is None for group in groups):
        lines.append("no likelihood: these runs have no number to compare")
    return lines
