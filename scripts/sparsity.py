"""Target sparsity, measured sparsity and reconstruction error, from the run folders of sparse autoencoders.

    genlab train -m experiment=sparse_ae_mnist model.code.k=4,8,16,32,64
    python scripts/sparsity.py outputs/multirun/… [more folders] --out docs/sparsity-mnist.png

Prints a table in Markdown with one row for each run: the code and its setting, the target, what was measured at the
last training steps and on the validation split (5,000 images of MNIST), dead units, squared error per value. Draws
squared error over the share of units that are on, one line for each code. No test image is used.
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

# The setting of each code that makes it more or less sparse.
SETTINGS = {"L1": "weight", "L2": "weight", "KL": "target", "TopK": "k", "Lifetime": "share", "SpikeSlab": "share"}


def read(folders: list[Path]) -> list[dict[str, Any]]:
    """A record for every finished run of a sparse code below the folders."""
    records = []
    for path in sorted(p for folder in folders for p in folder.rglob("results.json")):
        code = OmegaConf.load(path.parent / "config.yaml").model.code
        name = str(code["_target_"]).rpartition(".")[2]
        if name in SETTINGS:
            valid = json.loads(path.read_text())["valid"]
            with open(path.parent / "metrics.csv", newline="") as file:
                last = [row for row in csv.DictReader(file) if row["train/active"]][-1]
            trained = {f"train_{key}": float(last[f"train/{key}"]) for key in ("active", "mean_activation")}
            records.append(
                {"code": name, "name": SETTINGS[name], "setting": float(code[SETTINGS[name]]), **valid, **trained}
            )
    return sorted(records, key=lambda r: (r["code"], r["setting"]))


def table(records: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    rows = [["code", "target", "measured in training", "active", "mean activation", "dead units", "squared error"]]
    rows.append(["---"] * len(rows[0]))
    for r in records:
        targets = {name: r[f"asked_{name}"] for name in ("active", "mean_activation") if f"asked_{name}" in r}
        target = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in targets.items()) or "-"
        measured = ", ".join(f"{r[f'train_{name}']:.4g}" for name in targets) or f"{r['train_active']:.4g}"
        cells = [
            measured,
            f"{r['active']:.4f}",
            f"{r['mean_activation']:.4f}",
            f"{r['dead_units']:.0f} of {r['units']}",
        ]
        rows.append([f"{r['code']}, {r['name']} {r['setting']:g}", target, *cells, f"{r['squared_error']:.5f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(records: list[dict[str, Any]], out: Path) -> None:
    """Squared error per value over the share of units that are on, one line for each code."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for code in SETTINGS:
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
