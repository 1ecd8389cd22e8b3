"""`train init=RUN`: start a new run from the weights of another run (fine-tuning).

Everything but the weights is new: the optimiser, the averaged weights (which start at the weights), the schedule and
the order of the images. The sections `model`, `data` and `optim` are those of the other run, except for what the
request changes. All other sections have their usual defaults. So `init=RUN optim.lr=1e-4` trains on with another
learning rate, and `init=RUN data=fashion_mnist` with other images of the same shape.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from torch import nn

from genlab.build import find_checkpoint, read_checkpoint, restore
from genlab.core import RequestError
from genlab.request.compose import Request
from genlab.request.folders import groups

SECTIONS = ("model", "data", "optim")


def composed(request: Request) -> DictConfig:
    """The config of a request, with Hydra's section. With init=RUN, sections that it does not name are those of RUN."""
    config = request.config()
    if config.init is None:
        return config
    file = find_checkpoint(config.init)
    _, run = read_checkpoint(file)
    keys = {o.key_or_group for o in request.parse(request.overrides)}
    chosen = {key.split("/")[0] for key in keys if "." not in key}
    kept = [section for section in SECTIONS if section in run and not chosen & {section, "experiment"}]
    if "model" in chosen and "optim" in kept:
        kept.remove("optim")  # a new model comes with its own optimiser
    known, names = groups(request.folders), run.get("names") or {}
    named = {name: names.get(name) for name in ("model", "data") if not keys & {name, "experiment"}}
    choices = [f"{group}={name}" for group, name in named.items() if name in known[group]]
    # The request changes whatever differs between two configs with the same choices: without and with its overrides.
    plain, config = request.check(choices), request.check([*choices, *request.overrides])
    with open_dict(config), read_write(config.hydra):
        config.init = str(file.absolute())
        for section in kept:
            config[section] = _changed(_literal(run[section], file), _plain(plain[section]), _plain(config[section]))
        if "data" in kept and "seed" in config.data and "data.seed" not in keys:
            config.data.seed = config.seed
        for section in {"model", "data"} & set(kept):
            config.hydra.runtime.choices[section] = named[section]
    return config


def load(model: nn.Module, init: str, trust: Sequence[str]) -> None:
    """Load the weights of the run or checkpoint `init` into `model`: the averaged weights if there are any.

    Raises RequestError if the two models do not have the same weights by name and shape.
    """
    source, _ = restore(Path(init), trust=trust)
    state, expected = source.state_dict(), model.state_dict()
    for key in [*expected, *state]:
        shape, run_shape = (tuple(part[key].shape) if key in part else "absent" for part in (expected, state))
        if shape != run_shape:
            raise RequestError(
                f"init={init} does not fit: {key} is {run_shape} there and {shape} in the requested model; "
                "to keep the model of that run, give neither model= nor data of another shape"
            )
    model.load_state_dict(state)


def _plain(section: Any) -> Any:
    return OmegaConf.to_container(section, resolve=False)


def _literal(section: Any, file: Path) -> Any:
    """A section of a checkpoint's config, which becomes part of a config that is resolved: it may not contain `${`."""
    if "${" in json.dumps(section):
        raise RequestError(f"init={file} has a config with unresolved values, which genlab never writes")
    return section


def _changed(run: Any, plain: Any, requested: Any) -> Any:
    """The section `run` with every change from `plain` to `requested` made to it."""
    if not all(isinstance(each, dict) for each in (run, plain, requested)):
        return run if plain == requested else requested
    section = {key: value for key, value in run.items() if key in requested or key not in plain}
    for key, value in requested.items():
        if key in plain and key in run:
            section[key] = _changed(run[key], plain[key], value)
        elif key not in plain or plain[key] != value:
            section[key] = value
    return section
