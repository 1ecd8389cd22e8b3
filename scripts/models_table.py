"""README's table of models, from files: nobody types a number twice, and none stands there without its command.

    python scripts/models_table.py add RUN_FOLDER [--note TEXT]   a run's results into docs/results/, then the table
    python scripts/models_table.py                                the table in README.md from docs/results/*.json

A file is MODEL-DATA[-EXPERIMENT].json: what results.json says of the test split, of size and of time, the command and
perhaps a note; nothing of the machine's folders. Unknown fields are null. A newer run of the same name replaces it.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genlab.measure.bits import Result
from genlab.system.atomic import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "docs" / "results", ROOT / "README.md"
COPIED = ("model", "experiment", "parameters", "steps", "seconds", "images_per_second", "precision")
LOCAL = ("hydra.run.dir", "hydra.sweep.dir", "data.root")  # where things are on one machine: no part of what was run
HEADER = ("model", "data", "on test, bits/dim", "parameters", "trained for", "command")


def collect(run: Path, note: str | None) -> dict[str, Any]:
    """What is kept of a run folder."""
    if not (run / "results.json").is_file():
        raise SystemExit(f"{run} is not the folder of a finished run: it has no results.json")
    if OmegaConf.load(run / "config.yaml").data.get("limit") is not None:
        raise SystemExit(f"{run} saw only a part of its data (data.limit): the table is of whole splits")
    results = json.loads((run / "results.json").read_text())
    kept = {key: results[key] for key in COPIED}
    variant = results["test"]["data"] + ("_label" if results["test"].get("conditioning") == "label" else "")
    return {
        **kept, "data": variant, "minutes": round(results["seconds"] / 60, 1), "test": results["test"],
        "command": command((run / "command.txt").read_text()), "note": note,
    }  # fmt: skip


def command(text: str) -> str:
    """The command of a run folder without the machine's paths; what `genlab resume` changed is part of it."""
    first, *later = (shlex.split(line) for line in text.splitlines() if line.strip())
    changed = [word for words in later for word in words[2:] if not word.startswith("run=")]
    names = {word.partition("=")[0] for word in changed}
    words = [word for word in first if word.partition("=")[0] not in names] + changed
    return shlex.join(_portable(word) for word in words if word.partition("=")[0] not in LOCAL)


def _portable(word: str) -> str:
    """A word whose value is a path, without it."""
    key, equals, value = word.partition("=")
    if not equals:
        return "FOLDER" if "/" in word or word.startswith("~") else word
    return f"{key}=FOLDER" if key == "data.path" or value.startswith(("/", "~", "./", "../")) else word


def name(entry: dict[str, Any]) -> str:
    """MODEL-DATA[-EXPERIMENT].json."""
    return "-".join(part for part in (entry["model"], entry["data"], entry["experiment"]) if part) + ".json"


def table(folder: Path = RESULTS) -> str:
    """The Markdown table of all files, data set by data set, best first."""
    entries = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    entries.sort(key=lambda e: (e["data"], e["test"].get("bits_per_dim", e["test"].get("loss", math.inf)), e["model"]))
    rows = [HEADER, ("---",) * len(HEADER), *(_row(entry) for entry in entries)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    test = entry["test"]
    value = _value(test)
    parameters = "" if entry["parameters"] is None else f"{entry['parameters']:,}"
    cells = (f"`{entry['model']}`", f"`{entry['data']}`", value, parameters, _effort(entry), f"`{entry['command']}`")
    return tuple(cell.replace("|", "\\|") for cell in cells)


def _value(test: dict[str, Any]) -> str:
    """What a model is judged by; a reconstruction does not pass for a likelihood."""
    if "bits_per_dim" in test:
        return str(Result(**test))
    if test.get("kind") == "reconstruction":
        error = f"{test['reconstruction']:.4f} ± {test['standard_error']:.4f} {test['measured_in']}"
        return f"no likelihood; reconstruction {error} ({test['n']:,} images)"
    if test.get("kind") == "adversarial":
        return "no likelihood"
    return f"loss {test['loss']:.4f} nats ({test['n']:,} images)"


def _effort(entry: dict[str, Any]) -> str:
    """6,800 steps, 28 minutes; a note."""
    parts = [] if entry["steps"] is None else [f"{entry['steps']:,} steps"]
    if (minutes := entry["minutes"]) is not None:
        parts.append(f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.{int(minutes < 10)}f} minutes")
    if entry["precision"] not in (None, "32-true"):
        parts.append(entry["precision"])
    return "; ".join(text for text in (", ".join(parts), entry["note"]) if text)


def written(readme: str, rows: str, what: str = "models") -> str:
    """The README with a table between the markers of that name."""
    begin, end = f"<!-- {what}:begin -->", f"<!-- {what}:end -->"
    before, found, rest = readme.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise SystemExit(f"README.md needs the lines {begin} and {end}: the table goes between them")
    return f"{before}{begin}\n{rows}\n{end}{after}"


def main() -> None:
    """Add a run if one is given; then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb")
    add = verbs.add_parser("add", help="copy a run's results into docs/results/")
    add.add_argument("run", type=Path)
    add.add_argument("--note", help="what the numbers do not say, e.g. the hardware")
    args = parser.parse_args()
    if args.verb == "add":
        entry = collect(args.run, args.note)
        path = RESULTS / name(entry)
        print(f"{'replaced' if path.exists() else 'added'} {path.relative_to(ROOT)}")
        write_json(path, entry)
    write_text(README, written(README.read_text(), table()))


if __name__ == "__main__":
    main()
