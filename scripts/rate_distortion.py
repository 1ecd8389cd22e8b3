"""Rate against distortion of latent Gaussian models, from the run folders of a sweep over beta.

    genlab train -m model=latent_gaussian data=mnist model.beta=0.1,0.3,1,3,10
    python scripts/rate_distortion.py outputs/multirun/… [more folders] --out docs/rate-distortion-mnist.png

The rate is the KL of q(z | x) from the prior, the distortion is -log p(x | z), both in nats per image on the validation
split. Their sum is the negative ELBO. Fully trained, it is smallest at beta = 1 (Alemi et al. 2018, arXiv:1711.00464).
Prints a table in Markdown and draws a plot with lines of equal ELBO.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from genlab.system.atomic import atomically


def read(folders: list[Path]) -> list[dict[str, Any]]:
    """A record for every finished run of a model with a beta below the folders."""
    records = []
    for path in sorted(p for folder in folders for p in folder.rglob("results.json")):
        model = OmegaConf.load(path.parent / "config.yaml").model
        if "beta" in model:
            records.append({"beta": float(model.beta), **json.loads(path.read_text())["valid"]})
    return sorted(records, key=lambda r: r["beta"])


def table(records: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    rows = [["beta", "rate", "distortion", "negative ELBO", "active units"], ["---"] * 5]
    for r in records:
        numbers = [f"{r[key]:.2f}" for key in ("rate", "distortion")] + [f"{r['rate'] + r['distortion']:.2f}"]
        rows.append([f"{r['beta']:g}", *numbers, str(r["active_units"])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(records: list[dict[str, Any]], out: Path) -> None:
    """One point for each run, with its beta. Dotted lines are lines of equal ELBO."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["rate"] for r in records], [r["distortion"] for r in records], marker="o", color="C0")
    for r in records:
        axes.annotate(f"β = {r['beta']:g}", (r["rate"], r["distortion"]), xytext=(5, 5), textcoords="offset points")
        axes.axline((r["rate"], r["distortion"]), slope=-1, color="0.8", linestyle=":", linewidth=0.8)
    axes.margins(0.12)  # room for the names
    axes.set(xlabel="rate, nats per image", ylabel="distortion, nats per image")
    with atomically(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main() -> None:
    """Print the table, write the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    records = read(args.folders)
    if not records:
        raise SystemExit("no finished run of a model with a beta below these folders")
    print(table(records))
    plot(records, args.out)


if __name__ == "__main__":
    main()
