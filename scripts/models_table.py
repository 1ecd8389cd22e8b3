"""The tables of models in docs/results.md (every run) and README.md (the best run of each model), made from files.

    python scripts/models_table.py add RUN_FOLDER [--note TEXT] [--cpu-minutes N]
                                                                  copy a run's results to docs/results/, then the tables
    python scripts/models_table.py                                the tables, from docs/results and docs/families

A file is MODEL-DATA[-EXPERIMENT].json. It holds what results.json says of the test split, of size and of time, the
command, and perhaps a note. On a shared machine the minutes are those of CPU time. It holds no folder of this machine.
Unknown fields are null. A newer run of the same name replaces the older one. No number is typed by hand, and none
stands in a table without its command.
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
RESULTS, FAMILIES = ROOT / "docs" / "results", ROOT / "docs" / "families"
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
COPIED = ("model", "experiment", "parameters", "steps", "seconds", "images_per_second", "precision")
LOCAL = ("hydra.run.dir", "hydra.sweep.dir", "data.root", "train.pause_after")  # no part of what was run
HEADER = ("model", "data", "on test, bits/dim", "nats/dim", "parameters", "trained for", "command")
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10"}  # the columns of the README's table
LECTURE = {
    "gated_pixelcnn": "Gated PixelCNN",
    "pixel_transformer": "pixel transformer",
    "pixelcnn": "PixelCNN",
    "made": "MADE",
    "row_lstm": "PixelRNN: Row LSTM",
    "diagonal_bilstm": "PixelRNN: Diagonal BiLSTM",
    "pixelcnnpp": "PixelCNN++",
    "pixelsnail": "PixelSNAIL",
    "flow": "normalizing flow",
    "latent_gaussian": "latent Gaussian model (VAE), MLP",
    "conv_latent_gaussian": "latent Gaussian model (VAE), convolutional",
    "vqvae": "VQ-VAE with an autoregressive prior",
    "gaussian_mixture": "mixture of Gaussians",
    "ppca": "probabilistic PCA",
    "gan": "GAN",
}


def collect(run: Path, note: str | None, cpu_minutes: float | None = None) -> dict[str, Any]:
    """What is kept of a run folder. `cpu_minutes`: of a run on a shared core, whose clock says little."""
    if not (run / "results.json").is_file():
        raise SystemExit(f"{run} is not the folder of a finished run: it has no results.json")
    if OmegaConf.load(run / "config.yaml").data.get("limit") is not None:
        raise SystemExit(f"{run} saw only a part of its data (data.limit): the table is of whole splits")
    results = json.loads((run / "results.json").read_text())
    kept = {key: results[key] for key in COPIED}
    variant = results["test"]["data"] + ("_label" if results["test"].get("conditioning") == "label" else "")
    return {
        **kept, "data": variant, "minutes": cpu_minutes or round(results["seconds"] / 60, 1), "test": results["test"],
        "command": command((run / "command.txt").read_text()), "note": note,
    }  # fmt: skip


def command(text: str) -> str:
    """The command of a run folder without the machine's paths, together with what `genlab resume` changed."""
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
    parts = (entry["model"], entry["data"], entry["experiment"])
    return "-".join(part.replace("/", "_") for part in parts if part) + ".json"


def table(folder: Path = RESULTS) -> str:
    """The Markdown table of all files, MNIST before CIFAR-10, the best model first."""
    entries = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    place = {data: i for i, data in enumerate(("mnist", "mnist_mini", "mnist_label", "cifar10"))}
    entries.sort(key=lambda e: (place.get(e["data"], len(place)), e["data"], _loss(e["test"]), e["model"]))
    rows = [HEADER, ("---",) * len(HEADER), *(_row(entry) for entry in entries)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _loss(test: dict[str, Any]) -> float:
    """What a table is sorted by."""
    return test.get("bits_per_dim", test.get("loss", math.inf))


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    test = entry["test"]
    value = _value(test)
    parameters = "" if entry["parameters"] is None else f"{entry['parameters']:,}"
    model, data, command = (f"`{entry[key]}`" for key in ("model", "data", "command"))
    cells = (model, data, value, _nats(test), parameters, _effort(entry), command)
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


def _nats(test: dict[str, Any]) -> str:
    """Nats per dimension, the unit of some papers and courses."""
    return f"{test['bits_per_dim'] * math.log(2):.4f}" if "bits_per_dim" in test else ""


def _effort(entry: dict[str, Any]) -> str:
    """6,800 steps, 28 minutes; a note."""
    parts = [] if entry["steps"] is None else [f"{entry['steps']:,} steps"]
    if (minutes := entry["minutes"]) is not None:
        parts.append(f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.{int(minutes < 10)}f} minutes")
    if entry["precision"] not in (None, "32-true"):
        parts.append(entry["precision"])
    return "; ".join(text for text in (", ".join(parts), entry["note"]) if text)


def best_table() -> str:
    """The README's table: of every model the fewest bits per dimension on each data set, the best model first."""
    paths = sorted([*RESULTS.glob("*.json"), *FAMILIES.glob("*.json")])
    best: dict[str, dict[str, dict[str, Any]]] = {model: {} for model in LECTURE}
    for entry in (json.loads(path.read_text()) for path in paths):
        runs = best.get(entry["model"])
        if runs is None or entry["test"]["data"] not in DATA or entry["test"].get("conditioning") == "label":
            continue
        rival = runs.get(entry["test"]["data"])
        if rival is None or _bits(entry) < _bits(rival):
            runs[entry["test"]["data"]] = entry
    trained = [model for model, runs in best.items() if runs]
    models = sorted(trained, key=lambda m: tuple(_bits(best[m].get(data)) for data in DATA))
    header = ["`model=`", "family", *(f"{name}, bits/dim (minutes of training)" for name in DATA.values())]
    rows = [header, ["---"] * len(header)]
    for model in models:
        rows.append([f"`{model}`", LECTURE[model], *(_best(best[model].get(data)) for data in DATA)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _bits(entry: dict[str, Any] | None) -> float:
    return math.inf if entry is None else entry["test"].get("bits_per_dim", math.inf)


def _best(entry: dict[str, Any] | None) -> str:
    """0.885 (64): exact. ≤ 1.062 (44): an upper bound."""
    if entry is None:
        return "-"
    if "bits_per_dim" not in entry["test"]:
        return "no likelihood"
    bound = "≤ " if entry["test"]["kind"] == "bound" else ""
    return f"{bound}{entry['test']['bits_per_dim']:.3f} ({entry['minutes']:.0f})"


def written(page: str, rows: str, what: str = "models") -> str:
    """The page with a table between the markers of that name."""
    begin, end = f"<!-- {what}:begin -->", f"<!-- {what}:end -->"
    before, found, rest = page.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise SystemExit(f"the page needs the lines {begin} and {end}: the table goes between them")
    return f"{before}{begin}\n{rows}\n{end}{after}"


def main() -> None:
    """Add a run if one is given; then the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb")
    add = verbs.add_parser("add", help="copy a run's results into docs/results/")
    add.add_argument("run", type=Path)
    add.add_argument("--note", help="what the numbers do not say, e.g. the hardware")
    add.add_argument("--cpu-minutes", type=float, help="minutes of CPU time, where the core was shared")
    args = parser.parse_args()
    if args.verb == "add":
        entry = collect(args.run, args.note, args.cpu_minutes)
        path = RESULTS / name(entry)
        print(f"{'replaced' if path.exists() else 'added'} {path.relative_to(ROOT)}")
        write_json(path, entry)
    write_text(PAGE, written(PAGE.read_text(), table()))
    write_text(README, written(README.read_text(), best_table(), "best"))


if __name__ == "__main__":
    main()
