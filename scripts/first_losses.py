"""The losses of the first 20 steps of every model at seed 0, and a hash of the weights after them, as JSON.

Two versions of genlab that are meant to compute the same must write the same file on the same machine:

    PYTHONPATH=../before python scripts/first_losses.py before.json
    python scripts/first_losses.py after.json && cmp before.json after.json
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

from genlab import cli

STEPS = 20
MODELS: dict[str, list[str]] = {
    "pixelcnn": [],
    "pixelcnn_bf16": ["model=pixelcnn", "trainer.precision=bf16-mixed"],
    "gated_pixelcnn": [],
    "gated_pixelcnn_label": ["model=gated_pixelcnn", "model/context=label", "data/context=label"],
    "pixelcnnpp": [],
    "pixelsnail": [],
    "pixel_transformer": [],
    "row_lstm": [],
    "diagonal_bilstm": [],
    "made": [],
    "bottleneck_ae": [],
    "linear_ae": [],
    "conv_ae": [],
    "sparse_ae": [],
    "denoising_ae": [],
    "stacked_ae": [],
    "latent_gaussian": [],
    "conv_latent_gaussian": [],
    "gaussian_mixture": [],
    "mixture_density": ["model=mixture_density", "data/context=half_mean"],
    "ppca": [],
    "flow": [],
    "gan": [],
    "classifier": [],
}


def losses(name: str, words: list[str]) -> dict[str, object]:
    """Train one model; every cell of its metrics that is not a time or a speed, and the hash of its weights."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        model = [] if any(word.startswith("model=") for word in words) else [f"model={name}"]
        status = cli.run([
            "train", *model, *words, "trainer=smoke", f"trainer.max_steps={STEPS}", "train.log_every=1", "seed=0",
            "data.batch_size=8", "train.sample_every=0", f"hydra.run.dir={run}",
        ])  # fmt: skip
        if status:
            raise SystemExit(f"{name}: status {status}")
        with open(run / "metrics.csv") as file:
            rows = [
                {key: cell for key, cell in row.items() if "second" not in key and "memory" not in key}
                for row in csv.DictReader(file)
            ]
        weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        digest = hashlib.sha256()
        for key in sorted(weights):
            digest.update(key.encode() + weights[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
        test = json.loads((run / "results.json").read_text())["test"]
        numbers = {key: value for key, value in test.items() if isinstance(value, float)}
        return {"metrics": rows, "weights": digest.hexdigest(), "test": numbers}


if __name__ == "__main__":
    found = {name: losses(name, words) for name, words in MODELS.items()}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
    for name, of in found.items():
        print(name, of["weights"][:16], len(of["metrics"]), "rows", of["test"])  # type: ignore[index,arg-type]
