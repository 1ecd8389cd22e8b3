"""Open the model of `ckpt=`, and the data set that it was trained on."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from genlab.build import build_data, read_checkpoint, restore
from genlab.build.models import model_name
from genlab.core import Features, ImageSpec, Likelihood, Pushforward, RequestError, RunError, nearest
from genlab.data import fingerprint
from genlab.data.module import SPLITS
from genlab.system.device import choose_device


def open_model(config: DictConfig, capability: type, does: str, *others: type) -> tuple[Any, dict[str, Any], ImageSpec]:
    """(model of `ckpt=` on its device, config of its run, spec of its images).

    `capability`: the protocol of `core.py` that the verb needs. `does`: a phrase for messages of what the verb does.
    `others` are classes of models without it that the verb can handle as well. Raises RequestError for any other model,
    and RunError for a model that computes NaN or infinity.
    """
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    if not isinstance(model, (capability, *others)):
        raise RequestError(f"{model_name(model)} cannot {does}: its class is no genlab.core.{capability.__name__}")
    model.to(choose_device(config.get("device", "auto")))
    _check_finite_outputs(model, config.ckpt)
    return model, run, model.spec  # type: ignore[return-value]


def open_data(
    config: DictConfig, run: dict[str, Any], *, splits: Sequence[str] | None = None, warn: bool = True
) -> Any:
    """The data module of a checkpoint's run, with the data's place on this machine (`data.root`, `data.path`).

    The images may differ from those of the run in the `splits` (by default `split`, or all for a verb without it). The
    differences are in the attribute `others` (see `fingerprint.differences`). If `warn`, they are also printed to
    standard error. Raises RequestError for data of another shape or number of levels.
    """
    settings = dict(run["data"])
    # A folder of another machine is replaced by the default one: a checkpoint must not make folders on this machine.
    if isinstance(settings.get("root"), str) and not Path(settings["root"]).expanduser().is_dir():
        settings["root"] = None
    for key, value in config.data.items():
        if value is not None:
            if key == "path" and "path" not in settings:
                raise RequestError(
                    f"data.path={value}: this checkpoint was trained on {run['names']['data']}, use data.root="
                )
            settings[key] = value
    if config.batch_size is not None:
        settings["eval_batch_size"] = config.batch_size
    data, spec = build_data(settings, config.trust), run["spec"]
    if (data.spec.shape, data.spec.levels) != (spec.shape, spec.levels):
        raise RequestError(
            f"the data has images of {data.spec.shape} (channels, height, width) with {data.spec.levels} levels, and "
            f"this checkpoint is for {spec.shape} with {spec.levels}"
        )
    splits = splits or ([config.split] if "split" in config else SPLITS)
    card = read_checkpoint(config.ckpt)[0]["genlab"]
    data.others = fingerprint.differences(card, data, splits, fewer=config.data.limit is not None)
    if warn:
        for split, counts in data.others.items():
            print(f"warning: {fingerprint.sentence(split, counts)}", file=sys.stderr)
    return data


def check_split(config: DictConfig) -> None:
    """Raise RequestError unless `split=` names a split of a data set."""
    if config.split not in SPLITS:
        raise RequestError(f"split={config.split} does not exist: {nearest(str(config.split), SPLITS)}")


@torch.no_grad()
def _check_finite_outputs(model: Any, ckpt: object) -> None:
    """Raise RunError for a model that computes NaN or infinity for one image of noise: its samples would be useless."""
    spec: ImageSpec = model.spec
    device = next(model.parameters()).device
    x = torch.randint(spec.levels, (1, *spec.shape), generator=torch.Generator().manual_seed(0)).to(device)
    context = None
    if getattr(model, "conditioning", "none") == "label":
        context = x.new_zeros(1)
    elif getattr(model, "conditioning", "none") == "image" and spec.context is not None:
        context = x.new_zeros(1, *spec.context.shape)
    with torch.random.fork_rng(devices=[]):
        outputs = list(model.features(x, context).values()) if isinstance(model, Features) else []
        if isinstance(model, Pushforward):
            outputs.append(model.decode(model.prior(1), context))
        if isinstance(model, Likelihood):
            # Noise may have probability 0, so infinity is allowed here and NaN is not.
            outputs.append(torch.nan_to_num(model.log_prob(x, context), nan=math.nan))
    if not all(bool(each.isfinite().all()) for each in outputs):
        raise RunError(f"ckpt={ckpt} computes numbers that are not finite: its training had gone wrong")
