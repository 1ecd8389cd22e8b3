"""Sparsity asked for against sparsity got, and what it costs: from the run folders of sparse autoencoders.

    genlab train -m experiment=sparse_ae_mnist model.code.k=4,8,16,32,64
    python scripts/sparsity.py outputs/multirun/… [more folders] --out docs/sparsity-mnist.png

A table in Markdown, a row a run: the code and its setting, what was asked for, what was measured at the last training
steps and on the validation split (5,000 images of MNIST; nothing here is chosen on test images), dead units, squared
error per value. And one plot
of squared error over the share of units that are on, a line a code.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from genlab.system.atomic import atomically

# The knob of each code: what is swept to get more or less sparsity.
KNOBS = {"L1": "weight", "L2": "weight", "KL": "target", "TopK": "k", "Lifetime": "share", "SpikeSlab": "share"}


def read(folders: list[Path]) -> list[dict[str, Any]]:
    """A record for every finished run of a sparse code below the folders."""
    found = []
    for path in sorted(p for folder in folders for p in folder.rglob("results.json")):
        code = OmegaConf.load(path.parent / "config.yaml").model.code
        name = str(code["_target_"]).rpartition(".")[2]
        if name in KNOBS:
            judged = json.loads(path.read_text())["valid"]
            with open(path.parent / "metrics.csv", newline="") as file:
                last = [row for row in csv.DictReader(file) if row["train/active"]][-1]
            trained = {f"train_{key}": float(last[f"train/{key}"]) for key in ("active", "mean_activation")}
            found.append({"code": name, "knob": KNOBS[name], "setting": float(code[KNOBS[name]]), **judged, **trained})
    return sorted(found, key=lambda r: (r["code"], r["setting"]))


def table(records: list[dict[str, Any]]) -> str:
    """Markdown."""
    rows = [["code", "asked for", "got in training", "active", "mean activation", "dead units", "squared error"]]
    rows.append(["---"] * len(rows[0]))
    for r in records:
        asked = {name: r[f"asked_{name}"] for name in ("active", "mean_activation") if f"asked_{name}" in r}
        wish = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in asked.items()) or "-"
        got = ", ".join(f"{r[f'train_{name}']:.4g}" for name in asked) or f"{r['train_active']:.4g}"
        cells = [got, f"{r['active']:.4f}", f"{r['mean_activation']:.4f}", f"{r['dead_units']:.0f} of {r['units']}"]
        rows.append([f"{r['code']}, {r['knob']} {r['setting']:g}", wish, *cells, f"{r['squared_error']:.5f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(records: list[dict[str, Any]], out: Path) -> None:
    """Squared error per value over the share of units that are on, a line a code."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for code in KNOBS:
        points = sorted((r["active"], r["squared_error"]) for r in records if r["code"] == code)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=code)
    axes.set(xscale="log", yscale="log", xlabel="share of units that are on", ylabel="squared error per value")
    axes.legend()
    with atomically(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("sparsity.png"))
    args = parser.parse_args()
    records = read(args.folders)
    if not records:
        raise SystemExit(f"no finished run of a sparse code below {', '.join(map(str, args.folders))}")
    print(table(records))
    plot(records, args.out)


if __name__ == "__main__":
    main()
