"""One table over every family: likelihood, quality of the samples, time to draw one, size; from files alone.

    python scripts/families.py add RUN QUALITY.json [--eval EVAL.json] --as NAME    into docs/families/, then the tables
    python scripts/families.py                                                      the tables of docs/latents.md

RUN: the folder of a finished run. QUALITY.json: of `genlab quality ckpt=RUN`. EVAL.json: of `genlab eval ckpt=RUN
draws=…`, where a tighter bound than the run's own is wanted. A row says which kind of number its bits/dim is; rows
whose samples were measured with different classifiers are not comparable, and are refused.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from models_table import collect
from probe_table import ROOT

from genlab.measure.bits import Result
from genlab.system.atomic import write_json, write_text

FAMILIES, PAGE = ROOT / "docs" / "families", ROOT / "docs" / "latents.md"
MEASURES = {  # of genlab quality, and by how much they are multiplied
    "frechet_distance": ("Fréchet", 1), "kernel_distance": ("kernel, 10⁻³", 1000), "precision": ("precision, %", 100),
    "recall": ("recall, %", 100), "density": ("density, %", 100), "coverage": ("coverage, %", 100),
    "label_accuracy": ("right class, %", 100),
}  # fmt: skip
HEADER = [
    "model",
    "bits/dim on test",
    *(label for label, _ in MEASURES.values()),
    "ms an image",
    "parameters",
    "minutes",
]


def add(run: Path, quality: Path, name: str, evaluated: Path | None) -> None:
    """Write the file of a run, the quality of its samples, and perhaps a tighter bound."""
    entry, drawn = collect(run, None), json.loads(quality.read_text())
    test = entry["test"] if evaluated is None else json.loads(evaluated.read_text())
    for what, found in (("quality", drawn["data"]), ("evaluation", test["data"])):
        if found != entry["test"]["data"]:
            raise SystemExit(f"the {what} is of {found}, the run of {entry['test']['data']}")
    if drawn["model"] != entry["model"] or drawn["step"] > entry["steps"]:
        raise SystemExit(f"{quality} is of {drawn['model']} at step {drawn['step']}: not of {run}")
    kept = {
        "name": name, **{key: entry[key] for key in ("model", "data", "parameters", "steps", "minutes", "command")},
        "test": {key: value for key, value in test.items() if key != "checkpoint"},
        "quality": {key: value for key, value in drawn.items() if key != "checkpoint"},
    }  # fmt: skip
    del kept["quality"]["classifier"]["checkpoint"]
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("+", "p")).strip("_")
    path = FAMILIES / f"{test['data']}-{slug}.json"
    if path.exists() and (other := json.loads(path.read_text())["name"]) != name:
        raise SystemExit(f"{path.name} is {other} already: give --as another name")
    write_json(path, kept)


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown, of one data set: the floor, then models by bits/dim, then those without."""
    quality = entries[0]["quality"]
    classifiers = {(e["quality"]["classifier"]["sha256"], e["quality"]["n"]) for e in entries}
    if len(classifiers) > 1:
        raise SystemExit(
            "the samples were measured with different classifiers, or differ in number: they are not comparable"
        )
    floor = ["training images: the floor", "", *_measured(quality["floor"]), "", "", ""]
    entries = sorted(entries, key=lambda e: (e["test"].get("bits_per_dim", math.inf), e["name"]))
    rows = [HEADER, ["---"] * len(HEADER), floor, *(_row(entry) for entry in entries)]
    classifier = quality["classifier"]
    about = (
        f"{quality['n']:,} samples against {quality['test_images']:,} test images, in {classifier['features']} "
        f"features of classifier `{classifier['sha256'][:12]}` ({100 * classifier['accuracy']:.2f} % right on test)."
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{about}"


def _row(entry: dict[str, Any]) -> list[str]:
    """The row of a model."""
    test, quality = entry["test"], entry["quality"]
    likelihood = str(Result(**_result(test))) if "bits_per_dim" in test else "no likelihood"
    speed = f"{1000 * quality['seconds_per_image']:.2g} ({quality['device']})"
    size = [f"{entry['parameters']:,}", f"{entry['minutes']:.0f}"]
    return [entry["name"], likelihood, *_measured(quality["samples"]), speed, *size]


def _result(test: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in test.items() if key in Result.__dataclass_fields__}


def _measured(found: dict[str, Any]) -> list[str]:
    """Each with its standard error, where it has one."""
    cells = []
    for key, (_, scale) in MEASURES.items():
        one = found.get(key)
        error = "" if one is None or one["error"] is None else f" ± {scale * one['error']:.2g}"
        cells.append("-" if one is None else f"{scale * one['value']:.4g}{error}")
    return cells


def written(page: str, folder: Path | None = None) -> str:
    """The page with a table between the markers of every data set."""
    by_data: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder or FAMILIES).glob("*.json")):
        entry = json.loads(path.read_text())
        by_data.setdefault(entry["test"]["data"], []).append(entry)
    for data, entries in by_data.items():
        begin, end = f"<!-- families {data} -->", f"<!-- /families {data} -->"
        before, found, rest = page.partition(begin)
        _, found_too, after = rest.partition(end)
        if not found or not found_too:
            raise SystemExit(f"docs/latents.md needs the lines {begin} and {end}: the table goes between them")
        page = f"{before}{begin}\n{table(entries)}\n{end}{after}"
    return page


def main() -> None:
    """Add a run if one is given; then the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb")
    new = verbs.add_parser("add", help="keep a run, its samples' quality and perhaps a tighter bound")
    new.add_argument("run", type=Path)
    new.add_argument("quality", type=Path)
    new.add_argument("--eval", type=Path, dest="evaluated")
    new.add_argument("--as", required=True, dest="name", help="what the row is called")
    args = parser.parse_args()
    if args.verb == "add":
        add(args.run, args.quality, args.name, args.evaluated)
    write_text(PAGE, written(PAGE.read_text()))


if __name__ == "__main__":
    main()
