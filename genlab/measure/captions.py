"""Captions of pictures: which run, which step of it, and how good it was on validation images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.build import find_checkpoint
from genlab.core import Likelihood

LATEST = ("latest", "latest_step")  # of the state of the callback Validation


def run_name(folder: Path) -> str:
    """The name of a run folder; for a run of a sweep, which is called 0, 1, …, with that of the sweep's folder."""
    folder = folder.absolute()
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdecimal() else folder.name


def score(value: float, model: Any) -> str:
    """A validation value in words; empty for a model without a number to compare, whose value is infinite."""
    if not math.isfinite(value):
        return ""
    return f"{value:.4f} bits/dim" if isinstance(model, Likelihood) else f"loss {value:.4f}"


def caption(name: str, step: int, model: Any, value: float, value_step: int) -> str:
    """The caption of a picture by `model` at `step`. `value` is that of the latest validation, at `value_step`."""
    parts = [name, f"step {step:,}"]
    if text := score(value, model):
        earlier = f" at step {value_step:,}" if value_step != step else ""
        parts.append(f"{text} on validation{earlier}")
    return " · ".join(parts)


def caption_of(ckpt: str | Path, run: Mapping[str, Any], model: Any) -> str:
    """The caption of a picture by (`model`, config `run`), which `build.restore` has read from `ckpt`."""
    file = find_checkpoint(ckpt)
    name = run_name(file.parent.parent) if file.parent.name == "checkpoints" else file.name
    step, validation = run["step"], run["validation"]
    if not isinstance(step, int):
        return name
    found = validation if isinstance(validation, dict) else {}
    # A checkpoint of an earlier version has the best value alone.
    value, value_step = (found.get(key) for key in (LATEST if "latest" in found else ("value", "step")))
    if not isinstance(value, (int, float)) or not isinstance(value_step, int):
        value, value_step = math.inf, step
    return caption(name, step, model, value, value_step)
