"""README's table of speeds, from a file of scripts/bench.py: medians, as measured, nothing typed by hand.

    python scripts/bench_table.py [docs/bench-cpu.json]

A row is a model at one size and shape. Training: images a second and the share of the ceiling of that precision.
Sampling, for every n: milliseconds for the n images, times faster than recomputation, in forward passes of the batch,
and what completing the lower half costs of a whole sample.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from models_table import README, ROOT, written

from genlab.system.atomic import write_text

FILE = ROOT / "docs" / "bench-cpu.json"


def table(found: dict[str, Any]) -> str:
    """The Markdown table."""
    training = {(*_case(r), r["precision"]): r for r in found["training"]}
    precisions = sorted({r["precision"] for r in found["training"]})
    n = sorted({r["n"] for r in found["sampling"]})
    drawn = {(*_case(r), r["n"]): r for r in found["sampling"]}
    measures = {"ms": ("seconds", 1e3), "x recomputation": ("speedup", 1.0)}
    measures |= {"forward passes": ("forward_passes", 1.0), "lower half": ("half_completion", 1.0)}
    header = ["model", "image", *(f"training, {p}: images/s (% of ceiling)" for p in precisions)]
    header += [f"{what}, n = {' / '.join(map(str, n))}" for what in measures]
    rows = [header, ["---"] * len(header)]
    for case in dict.fromkeys(_case(r) for r in found["training"]):
        name, data, depth, width = case
        steps = [training[(*case, p)] for p in precisions]
        draws = [drawn.get((*case, k)) for k in n]
        shares = (f"{_short(s['images_per_second'])} ({100 * s['share_of_ceiling']['median']:.0f})" for s in steps)
        cells = (_cells(draws, key, scale) for key, scale in measures.values())
        rows.append([f"`{name}` {depth} x {width}", data, *shares, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _case(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["model"], record["data"], record["depth"], record["width"]


def _cells(records: list[dict[str, Any] | None], key: str, scale: float = 1.0) -> str:
    return " / ".join("-" if r is None else _short(r[key], scale) for r in records)


def _short(value: dict[str, float], scale: float = 1.0) -> str:
    """Median with two or three digits, and without an exponent."""
    number = scale * value["median"]
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    found = json.loads(parser.parse_args().file.read_text())
    write_text(README, written(README.read_text(), table(found), "bench"))


if __name__ == "__main__":
    main()
