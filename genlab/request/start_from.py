"""`train init=RUN`: a new run from the weights of another, fine-tuning for short.

Everything but the weights is new: optimiser, averages (which begin at the weights), schedule, order of the images. The
sections `model`, `data` and `optim` are taken from that run, except for what the request names; all other sections have
their usual defaults. So `init=RUN optim.lr=1e-4` goes on with a smaller learning rate, and
`init=RUN data=fashion_mnist` with other images of the same shape.
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
    """The config of the request, with Hydra's section; with init=RUN, sections it does not name are that run's."""
    config = request.config()
    if config.init is None:
        return config
    file = find_checkpoint(config.init)
    _, run = read_checkpoint(file)
    mine, given = list(request.overrides), {o.key_or_group for o in request.parse(request.overrides)}
    chosen = {key.split("/")[0] for key in given if "." not in key}
    kept = [section for section in SECTIONS if section in run and not chosen & {section, "experiment"}]
    if "model" in chosen and "optim" in kept:
        kept.remove("optim")  # a new model brings the optimiser that suits it
    known, names = groups(request.folders), run.get("names") or {}
    named = {name: names.get(name) for name in ("model", "data") if not given & {name, "experiment"}}
    words = [f"{group}={name}" for group, name in named.items() if name in known[group]]
    # What the words change is the difference between two configs of the same names: without them and with them.
    plain, config = request.check(words), request.check(words + mine)
    with open_dict(config), read_write(config.hydra):
        config.init = str(file.absolute())
        for section in kept:
            config[section] = _changed(_literal(run[section], file), _plain(plain[section]), _plain(config[section]))
        if "data" in kept and "seed" in config.data and "data.seed" not in given:
            config.data.seed = config.seed
        for section in {"model", "data"} & set(kept):
            config.hydra.runtime.choices[section] = named[section]
    return config


def load(model: nn.Module, init: str, trust: Sequence[str]) -> None:
    """The averaged weights of the run or checkpoint `init`, or the weights if none were averaged, into `model`."""
    source, _ = restore(Path(init), trust=trust)
    state, own = source.state_dict(), model.state_dict()
    for key in [*own, *state]:
        here, there = (tuple(part[key].shape) if key in part else "absent" for part in (own, state))
        if here != there:
            raise RequestError(
                f"init={init} does not fit: {key} is {there} there and {here} in the model that is asked for; "
                "name neither model= nor data of another shape to keep its model"
            )
    model.load_state_dict(state)


def _plain(section: Any) -> Any:
    return OmegaConf.to_container(section, resolve=False)


def _literal(section: Any, file: Path) -> Any:
    """A section of a checkpoint's config. It becomes part of ours, which is resolved, so it may hold no `${`."""
    if "${" in json.dumps(section):
        raise RequestError(f"init={file} has a config with unresolved values, which genlab never writes")
    return section


def _changed(run: Any, plain: Any, asked: Any) -> Any:
    """`run`, with whatever differs between `plain` and `asked`."""
    if not all(isinstance(each, dict) for each in (run, plain, asked)):
        return run if plain == asked else asked
    made = {key: value for key, value in run.items() if key in asked or key not in plain}
    for key, value in asked.items():
        if key not in plain or key not in run:
            if key not in plain or plain[key] != value:
                made[key] = value
        else:
            made[key] = _changed(run[key], plain[key], value)
    return made
