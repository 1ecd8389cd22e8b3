"""`genlab eval`: the likelihood of a checkpoint over every image of a split, once, on one process or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab import bits
from genlab.build import find_checkpoint, read_checkpoint, restore
from genlab.compose import Request, split_hydra
from genlab.core import Likelihood, RequestError, nearest
from genlab.data.module import SPLITS
from genlab.tasks import launch
from genlab.tasks.common import at_least, check_seed, data_of, with_progress, writable
from genlab.train.checkpoint import write_json
from genlab.train.plan import Plan


def command(request: Request) -> None:
    """Check everything, then evaluate here or on `trainer.devices` processes."""
    config, _ = split_hydra(request.config())
    if config.split not in SPLITS:
        raise RequestError(f"split={config.split} does not exist: {nearest(str(config.split), SPLITS)}")
    at_least(config, "draws", 1)
    check_seed(config)
    if config.batch_size is not None:
        at_least(config, "batch_size", 1)
    writable("out", config.out, ".json")
    plan = Plan.of(config.trainer)
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    if not isinstance(model, Likelihood):
        raise RequestError(f"{type(model).__name__} has no likelihood: genlab eval has nothing to report for it")
    data_of(config, run).split(config.split)  # a missing file is told now, and not by every process
    if launch.world() == 1 and plan.devices > 1:
        settings = OmegaConf.to_container(config)
        launch.ranks(plan.devices, "genlab.tasks.evaluate:work", settings=settings)
    else:
        work(OmegaConf.to_container(config))


def work(settings: Any) -> None:
    """Evaluate this process's share; rank zero writes and prints."""
    config = OmegaConf.create(settings)
    assert isinstance(config, DictConfig)
    plan = Plan.of(config.trainer)
    launch.join(plan.accelerator)
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    assert isinstance(model, Likelihood)
    data = data_of(config, run)
    if plan.accelerator == "gpu":
        device = torch.device("cuda", torch.cuda.current_device())
        data.move_to(device)
        model.to(device)  # type: ignore[attr-defined]
    weights = str(model.weights)  # type: ignore[attr-defined]
    torch.manual_seed(config.seed)
    total = len(data.split(config.split).labels)

    def evaluate(advance):  # type: ignore[no-untyped-def]
        return bits.evaluate(
            model, data.batches(config.split), data.spec, draws=config.draws, split=config.split, data=data.name,
            weights=weights, precision="32", expected=total, on_batch=advance,
        )  # fmt: skip

    result = with_progress("evaluating", total, evaluate) if launch.is_zero() else evaluate(lambda done: None)
    if launch.is_zero():
        out = Path(config.out)
        step = read_checkpoint(config.ckpt)[0]["genlab"]["step"]
        checkpoint = str(find_checkpoint(config.ckpt))
        write_json(out, {**result.as_dict(), "model": run["names"]["model"], "checkpoint": checkpoint, "step": step})
        print(f"{config.split} bits/dim {result}")
