"""Checkpoint files: written complete or not at all, and checked before a run is resumed from one.

They hold tensors and primitives only and are read by `build/untrusted.py`: a checkpoint from an unknown source can use
the models of genlab, but cannot execute code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from genlab.build import untrusted
from genlab.build.untrusted import is_count, is_number
from genlab.core import RequestError, RunError
from genlab.system.atomic import atomically


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises RequestError if the file is not a checkpoint."""
    return untrusted.checkpoint(path)


def check_resumable(state: Mapping[str, Any], path: Path) -> None:
    """Raise RequestError if an entry of a checkpoint is missing or has a type that a run never writes."""
    card, callbacks = state["genlab"], state.get("callbacks")
    validation = callbacks.get("Validation") if isinstance(callbacks, dict) else None
    wrong = [name for name in ("step", "bad_steps", "updates") if not is_count(card.get(name))]
    wrong += [] if is_number(card.get("seconds")) else ["seconds"]
    wrong += [name for name, kind in (("stopped_early", bool), ("sums", dict)) if not isinstance(card.get(name), kind)]
    wrong += [name for name in ("epoch", "global_step") if not is_count(state.get(name))]
    wrong += [] if isinstance(state.get("loops"), dict) else ["loops"]
    if not isinstance(validation, dict) or not isinstance(validation.get("details"), dict):
        wrong += ["callbacks.Validation"]
    else:
        wrong += [f"callbacks.Validation.{name}" for name in ("step", "stale") if not is_count(validation.get(name))]
        wrong += [] if is_number(validation.get("value")) else ["callbacks.Validation.value"]
        wrong += [] if is_number(validation.get("latest", 0.0)) else ["callbacks.Validation.latest"]
        wrong += [] if is_count(validation.get("latest_step", 0)) else ["callbacks.Validation.latest_step"]
        wrong += [f"callbacks.Validation.details.{k}" for k, v in validation["details"].items() if not _is_detail(v)]
    for name, fits in (("optimizer_states", _is_optimizer), ("lr_schedulers", _is_scheduler)):
        parts = state.get(name)
        wrong += [] if isinstance(parts, list) and all(map(fits, parts)) else [name]
    data = [part for part in state.values() if isinstance(part, dict) and "position" in part]
    wrong += [] if data and all(is_count(part["position"]) for part in data) else ["position"]
    if wrong:
        raise RequestError(f"{path} cannot be resumed from: its {wrong[0]} is not what genlab writes there")
    weights = state["state_dict"].items()
    unsound = next((name for name, v in weights if v.is_floating_point() and not v.isfinite().all()), None)
    if unsound is not None:
        raise RequestError(f"{path} cannot be resumed from: its weights are not finite numbers ({unsound})")


def check_moments(optimizer: torch.optim.Optimizer, path: Any) -> None:
    """Raise RequestError if moments (averages of gradients) of a checkpoint have other shapes than the weights."""
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            shapes = {(), tuple(weight.shape)} if name == "step" else {tuple(weight.shape)}
            if not isinstance(value, Tensor) or tuple(value.shape) not in shapes:
                raise RequestError(f"{path} cannot be resumed from: its optimiser's {name} does not fit the weights")


def _is_optimizer(part: Any) -> bool:
    """True for the state of an optimiser: moments by the number of a weight, and groups of such numbers."""
    moments, groups = (part.get("state"), part.get("param_groups")) if isinstance(part, dict) else (None, None)
    if not isinstance(moments, dict) or not isinstance(groups, list):
        return False
    listed = (group.get("params") if isinstance(group, dict) else None for group in groups)
    return all(isinstance(kept, dict) for kept in moments.values()) and all(
        isinstance(numbers, list) and all(map(is_count, numbers)) for numbers in listed
    )


def _is_scheduler(part: Any) -> bool:
    """True if the base learning rates are numbers."""
    rates = part.get("base_lrs", []) if isinstance(part, dict) else None
    return isinstance(rates, list) and all(map(is_number, rates))


def _is_detail(value: Any) -> bool:
    """True for a primitive or a list of numbers."""
    return (
        value is None
        or isinstance(value, (str, int, float))
        or (isinstance(value, list) and all(map(is_number, value)))
    )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, complete or absent, without pickled objects."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write atomically. Raises RunError if it fails, for example on a full disk; the previous checkpoint stays."""
        try:
            with atomically(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError when a write is cut short
            raise RunError(f"could not write {path}: {error}") from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tensors and primitives, on the CPU."""
        return read(Path(path))
