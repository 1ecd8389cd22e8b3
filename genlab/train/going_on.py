"""A checkpoint as a run goes on from it: checked against what the config says now, and brought into line with it.

    averaged weights     dropped when train.ema is 0 now; begun from the weights themselves where there were none
    optimiser            the moments of the checkpoint, the settings of the config
    data                 the position, in images: a batch of another size begins where the last one ended

A run whose config has not changed goes on from exactly what it saved. Everything that cannot be brought into line is a
RequestError, before anything is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.core import RequestError
from genlab.train.checkpoint import AtomicCheckpointIO, read
from genlab.train.learner import Learner

PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops", "genlab")
COUNTERS = ("step", "stopped_early", "bad_steps", "updates", "seconds", "sums")


def read_last(folder: Path) -> dict[str, Any] | None:
    """checkpoints/last.ckpt of a run folder; None if there is none yet."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        return None
    best = path.with_name("best.ckpt")
    try:
        state = read(path)
        if not all(isinstance(state.get(part), (dict, list)) for part in PARTS):
            raise RequestError(f"{path} is not a checkpoint to go on from: parts of it are missing")
        if not all(key in state["genlab"] for key in COUNTERS) or "Validation" not in state["callbacks"]:
            raise RequestError(f"{path} is not a checkpoint to go on from: its counters are missing")
    except RequestError as error:
        again = f"; to go on from the best one instead, copy {best.name} over it" if best.exists() else ""
        raise RequestError(f"{error}{again}") from error
    return state


def in_line(state: dict[str, Any], learner: Learner, data: Any, images: int, fused: bool) -> dict[str, Any]:
    """The checkpoint for `learner`, whose batches on all processes together have `images` images."""
    card = dict(state["genlab"])
    weights, card["updates"] = _weights(state["state_dict"], learner, card["updates"])
    groups = learner._optimizer(fused=fused).param_groups
    before = card.get("batch_images", images)
    name = type(data).__qualname__
    if "position" not in state.get(name, {}):
        raise RequestError(
            f"checkpoints/last.ckpt was written by a run on another kind of data than {name}: start a new run from its "
            "weights, genlab train init=RUN"
        )
    position = state[name]["position"] * before // images
    return {
        **state,
        "genlab": card,
        "state_dict": weights,
        "optimizer_states": [_optimizer(each, groups) for each in state["optimizer_states"]],
        "lr_schedulers": [
            {**each, "base_lrs": [group["lr"] for group in groups]} if "base_lrs" in each else each
            for each in state["lr_schedulers"]
        ],
        name: {**state[name], "position": position},
    }


class GoingOn(AtomicCheckpointIO):
    """Lightning's checkpoint files; what it loads is `state`, once."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        super().__init__()
        self._states = [] if state is None else [state]

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Handed over, not kept: it is as large as the model and its optimiser together."""
        return self._states.pop()


def _weights(saved: Mapping[str, Tensor], learner: Learner, updates: int) -> tuple[dict[str, Tensor], int]:
    """(model and average for the learner, how many updates the average has seen)."""
    wanted = learner.state_dict()
    averaged = any(key.startswith("ema.") for key in saved)
    kept = {key: value for key, value in saved.items() if not key.startswith("ema.")}
    if learner.ema is not None and averaged:
        kept = dict(saved)
    elif learner.ema is not None:
        kept |= {"ema." + key.removeprefix("model."): value.clone() for key, value in kept.items()}
        updates = 0
    for key in [*wanted, *kept]:
        here, there = (tuple(part[key].shape) if key in part else None for part in (wanted, kept))
        if here != there:
            raise RequestError(
                f"checkpoints/last.ckpt does not fit the model of config.yaml: {key} is {_shape(there)} there and "
                f"{_shape(here)} here; a run keeps its model"
            )
    return kept, updates


def _optimizer(saved: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The moments of a checkpoint under the settings of `groups`."""
    shapes = [[tuple(p.shape) for p in group["params"]] for group in groups]
    moments = saved["state"]

    def fits(index: int, shape: tuple[int, ...]) -> bool:
        return all(
            tuple(value.shape) in ((), shape) for value in moments.get(index, {}).values() if torch.is_tensor(value)
        )

    same = [len(group["params"]) for group in saved["param_groups"]] == [len(group) for group in shapes]
    if not same or not all(
        fits(index, shape)
        for group, each in zip(saved["param_groups"], shapes, strict=True)
        for index, shape in zip(group["params"], each, strict=True)
    ):
        raise RequestError("checkpoints/last.ckpt does not fit the optimiser of config.yaml; a run keeps its model")
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    # initial_lr is what a schedule multiplies; a group has it once it has one
    changed = [
        {**group, **new, "initial_lr": new["lr"], "lr": group["lr"]}
        for group, new in zip(saved["param_groups"], settings, strict=True)
    ]
    return {**saved, "param_groups": changed}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
