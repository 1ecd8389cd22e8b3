"""The homework of Berkeley's course CS294-158 (Deep Unsupervised Learning), reproduced: docs/homework.md.

    python scripts/homework.py train [NAME …]    train `experiment=homework/NAME` (all by default), keep the results
    python scripts/homework.py                   write the table of docs/homework.md

A result is a file docs/homework/NAME.json, as scripts/models_table.py keeps it. The published losses are those of the
course's own solutions, in nats per dimension of test images.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from models_table import collect, written
from scipy.special import entr

from genlab.data import Shapes
from genlab.data.toy import Toy
from genlab.request.folders import configs_folder
from genlab.system.atomic import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
KEPT, PAGE = ROOT / "docs" / "homework", ROOT / "docs" / "homework.md"
PUBLISHED = {
    "pixelcnn_shapes": 0.0416,
    "pixelcnn_mnist": 0.0756,
    "gated_pixelcnn_mnist": 0.0770,
    "label_shapes": 0.0388,
    "label_mnist": 0.0715,
    "independent_shapes_colour": 0.0444,
    "independent_mnist_colour": 0.0853,
    "autoregressive_shapes_colour": 0.0236,
    "autoregressive_mnist_colour": 0.0331,
    "made_shapes": 0.0623,
    "made_mnist": 0.1106,
}  # nats/dim
LEAST = {  # the entropy of the generated images, which no model can beat on average, nats/dim
    "shapes": Shapes().entropy / 400,
    "shapes_colour": Shapes(colour=True).entropy / 1200,
    **{toy.name: float(entr(toy.table).sum() / 2) for toy in (Toy(2, shape, 64) for shape in ("moons", "smiley"))},
}


def train(name: str) -> None:
    """Train an experiment and keep what its run says of the test split."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"experiment=homework/{name}", "trainer=cpu", "train.sample_every=0", f"hydra.run.dir={folder}/run"]
        subprocess.run([sys.executable, "-m", "genlab", "train", *words], check=True)
        write_json(KEPT / f"{name}.json", collect(Path(folder) / "run", None))


def table() -> str:
    """Published loss, ours, the smallest possible one where it is known, and the time."""
    rows = [
        "| `experiment=homework/…` | published | ours | least possible | minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for file in sorted(KEPT.glob("*.json"), key=lambda file: _place(file.stem)):
        entry: dict[str, Any] = json.loads(file.read_text())
        ours = entry["test"]["bits_per_dim"] * math.log(2)
        bound = "≤ " if entry["test"]["kind"] == "bound" else ""
        published = f"{PUBLISHED[file.stem]:.4f}" if file.stem in PUBLISHED else ""
        least = f"{LEAST[entry['data']]:.4f}" if entry["data"] in LEAST else ""
        rows.append(f"| `{file.stem}` | {published} | {bound}{ours:.4f} | {least} | {entry['minutes']:.1f} |")
    return "\n".join(rows)


def _place(name: str) -> tuple[int, str]:
    """The order of the published list; the others after it."""
    names = list(PUBLISHED)
    return (names.index(name) if name in names else len(names), name)


def main() -> None:
    """Train, or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", nargs="?", choices=["train"])
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    if args.verb:
        every = sorted(path.stem for path in (configs_folder() / "experiment" / "homework").glob("*.yaml"))
        for name in args.names or every:
            train(name)
    write_text(PAGE, written(PAGE.read_text(), table(), "homework"))


if __name__ == "__main__":
    main()
