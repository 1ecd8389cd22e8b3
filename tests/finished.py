"""Run folders as training leaves them, written in milliseconds: nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from genlab.request.compose import Request, split_hydra

EXACT = {"kind": "exact", "standard_error": 0.01, "n": 100, "data": "mnist_mini", "conditioning": "none", "draws": 1}


def run_folder(
    folder: Path, *words: str, bits: float | None = 1.0, test: dict[str, Any] | None = None, curve=(3.0, 2.0)
) -> Path:
    """The folder of `genlab train WORDS`. `bits`: its value on both splits; None: the run is unfinished.

    `test`: entries that replace those of `EXACT`. `curve`: validation values at steps 10, 20, ….
    """
    folder.mkdir(parents=True)
    request = Request("train", ["trainer.max_steps=6", *words], command="")
    config, _ = split_hydra(request.config())
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    if bits is not None:
        split = {"bits_per_dim": bits, **EXACT, **(test or {})}
        results = {"test": split, "valid": split, "parameters": 1000, "steps": 6, "seconds": 120.0}
        (folder / "results.json").write_text(json.dumps(results))
    rows = [f"{10 * i},{value + 0.5},{value}" for i, value in enumerate(curve, 1)]
    (folder / "metrics.csv").write_text("\n".join(["step,train/bits_per_dim,valid/bits_per_dim", *rows, ""]))
    for step, grey in ((10, 40), (20, 200)):
        (folder / "samples").mkdir(exist_ok=True)
        Image.new("L", (8, 8), grey).save(folder / "samples" / f"step={step:06d}.png")
    return folder
