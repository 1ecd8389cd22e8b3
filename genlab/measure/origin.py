"""The model that was measured: the first entries of every JSON file of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlab.build import find_checkpoint, read_checkpoint


def origin(ckpt: str | Path) -> dict[str, Any]:
    """Name of the model, checkpoint file and training step of a run folder or checkpoint file."""
    checkpoint, run = read_checkpoint(ckpt)
    return {
        "model": run["names"]["model"],
        "checkpoint": str(find_checkpoint(ckpt)),
        "step": checkpoint["genlab"]["step"],
    }
