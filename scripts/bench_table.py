"""The tables of docs/speed.md, from a file of scripts/bench.py: medians as measured, no number typed by hand.

    python scripts/bench_table.py [docs/bench-cpu.json]

A row is a model at one depth, width and image shape. One table is for training, one for sampling 1, 16, 64 and 256
images, one that compares sampling 16 images with slower methods.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from models_table import ROOT, written

from genlab.system.atomic import write_text

FILE, PAGE = ROOT / "docs" / "bench-cpu.json", ROOT / "docs" / "speed.md"
COMPARED = 16  # images drawn at once in the third table


def training(results: dict[str, Any]) -> str:
    """Images a second, and the share of the machine's own matrix-product ceiling, in each precision."""
    records = {(*_case(r), r["precision"]): r for r in results["training"]}
    precisions = sorted({r["precision"] for r in results["training"]})
    header = [f"{p}, {what}" for p in precisions for what in ("images/s", "% of ceiling")]
    rows = []
    for case in _cases(results):
        of = [records[(*case, p)] for p in precisions]
        cells = [(_short(r["images_per_second"]), f"{100 * r['share_of_ceiling']['median']:.0f}") for r in of]
        rows.append([*_named(case), *(cell for pair in cells for cell in pair)])
    return _markdown([*NAMES, *header], rows)


def sampling(results: dict[str, Any]) -> str:
    """Milliseconds an image, by the number of images drawn at once."""
    records = {(*_case(r), r["n"]): r for r in results["sampling"]}
    counts = sorted({r["n"] for r in results["sampling"]})
    rows = []
    for case in _cases(results):
        of = {n: records.get((*case, n)) for n in counts}
        rows.append([*_named(case), *("-" if r is None else _short(r["seconds"], 1e3 / n) for n, r in of.items())])
    return _markdown([*NAMES, *(f"n = {n}" for n in counts)], rows)


def comparison(results: dict[str, Any]) -> str:
    """Sampling from the cache beside a whole forward pass for every value, and beside one forward pass."""
    records = {_case(r): r for r in results["sampling"] if r["n"] == COMPARED}
    keys = ("speedup", "forward_passes", "half_completion")
    rows = [
        [*_named(case), *(_short(records[case][key]) for key in keys)] for case in _cases(results) if case in records
    ]
    return _markdown([*NAMES, "times faster than recomputing", "in forward passes", "lower half / whole image"], rows)


TABLES = {"training": training, "sampling": sampling, "comparison": comparison}
NAMES = ["model", "depth x width", "image"]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def _cases(results: dict[str, Any]) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(_case(r) for r in results["training"]))


def _case(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["model"], record["data"], record["depth"], record["width"]


def _named(case: tuple[Any, ...]) -> list[str]:
    model, data, depth, width = case
    return [f"`{model}`", f"{depth} x {width}", data]


def _short(value: dict[str, float], scale: float = 1.0) -> str:
    """The median with two or three digits, without an exponent."""
    number = scale * value["median"]
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def page(text: str, results: dict[str, Any]) -> str:
    """The page with its three tables replaced."""
    for name, table in TABLES.items():
        text = written(text, table(results), name)
    return text


def main() -> None:
    """Read the file, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    results = json.loads(parser.parse_args().file.read_text())
    write_text(PAGE, page(PAGE.read_text(), results))


if __name__ == "__main__":
    main()
