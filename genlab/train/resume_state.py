"""The state that a resumed run starts from: a checkpoint, checked and adapted to the current config.

    averaged weights     dropped if train.ema is 0 now; started from the weights themselves if there were none
    optimiser            the moments of the checkpoint, the settings of the config
    data                 the position, in images: a batch of another size begins where the last one ended

A run whose config has not changed continues from exactly the saved state. If the state cannot be adapted, a
RequestError is raised before any file is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.core import RequestError
from genlab.train.checkpoint import AtomicCheckpointIO, check_resumable, read
from genlab.train.learner import Learner


def read_last(folder: Path) -> dict[str, Any] | None:
    """checkpoints/last.ckpt of a run folder; None if there is none yet."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        return None
    best = path.with_name("best.ckpt")
    try:
        state = read(path)
        check_resumable(state, path)
    except RequestError as error:
        advice = f"; to resume from the best one instead, copy {best.name} over it" if best.exists() else ""
        raise RequestError(f"{error}{advice}") from error
    return state


def adapt(state: dict[str, Any], learner: Learner, data: Any, images: int, fused: bool) -> dict[str, Any]:
    """The checkpoint `state`, adapted to `learner`, whose batches have `images` images on all processes together.

    `state` itself is not changed. `fused`: True if the precision allows a fused optimiser. Raises RequestError if it
    does not fit.
    """
    card = dict(state["genlab"])
    weights, card["updates"] = _weights(state["state_dict"], learner, card["updates"])
    groups = learner.make_optimizer(fused=fused).param_groups
    before = card.get("batch_images", images)
    name = type(data).__qualname__  # the key under which Lightning keeps the state of a data module
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
        "optimizer_states": [_optimizer_state(each, groups) for each in state["optimizer_states"]],
        "lr_schedulers": [
            {**each, "base_lrs": [group["lr"] for group in groups]} if "base_lrs" in each else each
            for each in state["lr_schedulers"]
        ],
        name: {**state[name], "position": position},
    }


class PreloadedCheckpointIO(AtomicCheckpointIO):
    """Writes checkpoint files; when Lightning loads one, it gets `state` instead of the file, once."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        super().__init__()
        self._states = [] if state is None else [state]

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return `state` and drop the reference to it, because it is as large as model and optimiser together."""
        return self._states.pop()


def _weights(saved: Mapping[str, Tensor], learner: Learner, updates: int) -> tuple[dict[str, Tensor], int]:
    """(weights and averaged weights for the learner, number of updates that the average has seen)."""
    expected = learner.state_dict()
    averaged = any(key.startswith("ema.") for key in saved)
    kept = {key: value for key, value in saved.items() if not key.startswith("ema.")}
    if learner.ema is not None and averaged:
        kept = dict(saved)
    elif learner.ema is not None:
        kept |= {"ema." + key.removeprefix("model."): value.clone() for key, value in kept.items()}
        updates = 0
    for key in [*expected, *kept]:
        shape, saved_shape = (tuple(part[key].shape) if key in part else None for part in (expected, kept))
        if shape != saved_shape:
            raise RequestError(
                f"checkpoints/last.ckpt does not fit the model of config.yaml: {key} is {_shape(saved_shape)} there "
                f"and {_shape(shape)} here; a run keeps its model"
            )
    return kept, updates


def _optimizer_state(saved: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The moments of a checkpoint under the settings of `groups`."""
    kinds = [any("momentum" in group for group in each) for each in (saved["param_groups"], groups)]
    if kinds[0] != kinds[1]:
        raise RequestError(
            "checkpoints/last.ckpt was written by another optimiser than that of config.yaml, and a run keeps its "
            "optimiser: start a new run from its weights, for example genlab train init=RUN optim=muon"
        )
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
    # initial_lr is what a schedule multiplies; a group has it once it has a schedule
    changed = [
        {**group, **new, "initial_lr": new["lr"], "lr": group["lr"]}
        for group, new in zip(saved["param_groups"], settings, strict=True)
    ]
    return {**saved, "param_groups": changed}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
