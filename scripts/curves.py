"""Training curves of several runs in one plot, for example of several seeds.

    python scripts/curves.py RUN [RUN …] --of train/generator_loss train/discriminator_loss --out losses.png

One panel for each column of metrics.csv, one line for each run. Prints the mean of each run over the last half of its
steps.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

from genlab.system.atomic import atomically


def curve(run: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column, where it has a value."""
    with (run / "metrics.csv").open() as file:
        rows = [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    if not rows:
        raise SystemExit(f"{run / 'metrics.csv'} has no values of {name}")
    steps, values = zip(*rows, strict=True)
    return list(steps), list(values)


def main() -> None:
    """Print the means, write the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--of", nargs="+", required=True, help="columns of metrics.csv")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure = Figure(figsize=(5 * len(args.of), 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(args.of), squeeze=False)[0], args.of, strict=True):
        for run in args.runs:
            steps, values = curve(run, name)
            half = values[len(values) // 2 :]
            print(f"{run.name} {name}: {sum(half) / len(half):.4f}, from {min(half):.4f} to {max(half):.4f}")
            axes.plot(steps, values, linewidth=0.8, label=run.name)
        axes.set(xlabel="step", title=name)
        axes.legend(frameon=False)
    with atomically(args.out) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    main()
