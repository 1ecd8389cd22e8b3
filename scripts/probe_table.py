"""The tables of docs/representations.md, made from files that `genlab probe` has written.

    python scripts/probe_table.py add PROBE.json --as "sparse, top-k"   a probe into docs/probes/, then the tables
    python scripts/probe_table.py                                       the tables of docs/representations.md

One row for each representation, one column for each number of labels; beside each network stands the same network
untrained. The controls that do not depend on a network (pixels, components, patches) are listed once for each width.
Accuracies are in %, on test images. The layer was chosen on validation for each number of labels.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from genlab.system.atomic import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
PROBES, PAGE = ROOT / "docs" / "probes", ROOT / "docs" / "representations.md"
LOCAL = ("checkpoint",)  # where things are on one machine

Cells = dict[tuple[int, str], dict[str, Any]]  # by number of labels and "" or "untrained"


def add(path: Path, name: str) -> None:
    """Keep a probe under a name that says what was trained."""
    found = json.loads(path.read_text())
    kept = {"name": name, **{key: value for key, value in found.items() if key not in LOCAL}}
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    write_json(PROBES / f"{found['data']}-{slug}-{found['labelled_images']}.json", kept)


def cell(record: dict[str, Any] | None) -> str:
    """Accuracy and its 95 % interval, with the layer where there was a choice."""
    if record is None:
        return "-"
    layer = f" ({record['layer']})" if record["layer"] != "-" else ""
    return f"{100 * record['accuracy']:.2f} ± {100 * record['interval']:.2f}{layer}"


def table(probes: list[dict[str, Any]]) -> str:
    """The Markdown table of one data set: controls first, then networks, each group by accuracy."""
    labels = sorted({p["labelled_images"] for p in probes})
    rows: dict[str, Cells] = defaultdict(dict)
    networks = {p["name"] for p in probes}
    for p in probes:
        for record in p["records"]:
            kind = record["features"]
            of_network = kind in ("network", "untrained network")
            name = p["name"] if of_network else f"PCA, {record['width']} components" if kind == "PCA" else kind
            state = "untrained" if kind == "untrained network" else ""
            rows[name].setdefault((p["labelled_images"], state), record)
    ordered = sorted(rows, key=lambda name: (name in networks, -rows[name][labels[0], ""]["accuracy"]))
    lines = ["| features | " + " | ".join(f"{n:,} labels | the same, untrained" for n in labels) + " |"]
    lines.append("|" + "---|" * (1 + 2 * len(labels)))
    for name in ordered:
        cells = [cell(rows[name].get((n, state))) for n in labels for state in ("", "untrained")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def written(page: str, probes: list[dict[str, Any]]) -> str:
    """The page with its tables replaced."""
    for data in sorted({p["data"] for p in probes}):
        start, end = f"<!-- probes {data} -->", f"<!-- /probes {data} -->"
        head, _, rest = page.partition(start)
        of_data = [p for p in probes if p["data"] == data]
        page = f"{head}{start}\n{table(of_data)}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> None:
    """Add a probe, if asked; then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="add PROBE.json")
    parser.add_argument("--as", dest="name")
    args = parser.parse_args()
    if args.words:
        if len(args.words) != 2 or args.words[0] != "add" or not args.name:
            parser.error('expected: add PROBE.json --as "NAME"')
        add(Path(args.words[1]), args.name)
    write_text(PAGE, written(PAGE.read_text(), kept()))


def kept() -> list[dict[str, Any]]:
    """Every probe in docs/probes."""
    return [json.loads(path.read_text()) for path in sorted(PROBES.glob("*.json"))]


if __name__ == "__main__":
    main()
