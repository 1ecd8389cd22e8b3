"""`genlab eval`: the likelihood of a checkpoint over every image of a split, once, on one process or several.

An autoencoder has no likelihood, and is told so; reported is what validation logged, its reconstruction. Nor has a GAN;
reported are its players' losses and scores, and with `classifier=` the quality of its samples. A classifier is reported
with its accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.build import find_checkpoint, read_checkpoint, restore
from genlab.build.models import model_name
from genlab.core import Adversarial, Classifier, Coder, Likelihood, RequestError, nearest
from genlab.data.fingerprint import sentence
from genlab.data.module import SPLITS
from genlab.measure import bits
from genlab.measure.evaluation import evaluate_split, latent_usage
from genlab.processes import launch
from genlab.request.checkpoints import open_data
from genlab.request.compose import Request, split_hydra
from genlab.request.numbers import check_at_least, check_seed
from genlab.request.outputs import writable
from genlab.request.progress import with_progress
from genlab.system import signals
from genlab.train.checkpoint import write_json
from genlab.train.plan import Plan
from genlab.verbs import quality

INSTEAD_CODER = "an autoencoder gives images no probability, so there is no bits/dim; what it has is a reconstruction"
INSTEAD_ADVERSARIAL = "a GAN has no likelihood, so there is no bits/dim; what it has is the quality of its samples"
PLAYERS = f"{INSTEAD_ADVERSARIAL} (add classifier=RUN), of which its players' losses say little"


def command(request: Request) -> None:
    """Check everything, then evaluate here or on `trainer.devices` processes."""
    config, _ = split_hydra(request.config())
    if config.split not in SPLITS:
        raise RequestError(f"split={config.split} does not exist: {nearest(str(config.split), SPLITS)}")
    check_at_least(config, "draws", 1)
    check_seed(config)
    if config.batch_size is not None:
        check_at_least(config, "batch_size", 1)
    writable("out", config.out, ".json")
    plan = Plan.of(config.trainer)
    launch.check_cores(plan.devices, plan.accelerator)
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    if not isinstance(model, (Likelihood, Coder, Adversarial, Classifier)):
        raise RequestError(f"{model_name(model)} has no likelihood: genlab eval has nothing to report for it")
    if not isinstance(model, Likelihood) and config.draws != 1:
        raise RequestError(
            f"draws={config.draws}: draws are those of a bound on the likelihood, which this model does not have; "
            "leave draws= out"
        )
    if config.classifier is not None:
        if not isinstance(model, Adversarial):
            raise RequestError(
                f"classifier={config.classifier}: this model is judged without one; the quality of its samples is "
                f"genlab quality ckpt={config.ckpt} classifier={config.classifier}"
            )
        if config.split != "test":
            raise RequestError(f"split={config.split}: samples are compared with test images; leave split= out")
        print(f"{INSTEAD_ADVERSARIAL}:")
        asked, _ = split_hydra(Request("quality", ["ckpt=-", "classifier=-"], command="").config())
        for key in ("ckpt", "classifier", "n", "seed", "weights", "data", "out", "trust"):
            asked[key] = config[key]
        quality.report(asked)
        return
    open_data(config, run, warn=False).split(config.split)  # a missing file is told now, and not by every process
    if launch.world() == 1 and plan.devices > 1:
        settings = OmegaConf.to_container(config)
        launch.ranks(plan.devices, "genlab.verbs.evaluate:work", settings=settings)
    else:
        work(OmegaConf.to_container(config))


@signals.impatiently()  # also as one rank of several: there is nothing to save
def work(settings: Any) -> None:
    """Evaluate this process's share; rank zero writes and prints."""
    config = OmegaConf.create(settings)
    assert isinstance(config, DictConfig)
    plan = Plan.of(config.trainer)
    launch.join(plan.accelerator)
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    data = open_data(config, run, warn=False)
    other = data.others.get(config.split)
    if plan.accelerator == "gpu":
        device = torch.device("cuda", torch.cuda.current_device())
        data.move_to(device)
        model.to(device)
    weights = str(model.weights)
    total = len(data.split(config.split).labels)

    def evaluate(advance):  # type: ignore[no-untyped-def]
        """(content of the file, line for the user)"""
        if not isinstance(model, Likelihood):
            evaluation = evaluate_split(model, data, config.split, weights=weights, seed=config.seed, on_batch=advance)
            return evaluation.details, evaluation.text
        result = bits.evaluate(
            model, data.batches(config.split), data.spec, draws=config.draws, split=config.split, data=data.name,
            weights=weights, expected=total, seed=config.seed, on_batch=advance,
        )  # fmt: skip
        return {**result.as_dict(), **latent_usage(model, data, config.split, config.seed)}, f"bits/dim {result}"

    details, text = with_progress("evaluating", total, evaluate) if launch.is_zero() else evaluate(lambda done: None)
    if launch.is_zero():
        out = Path(config.out)
        step = read_checkpoint(config.ckpt)[0]["genlab"]["step"]
        checkpoint = str(find_checkpoint(config.ckpt))
        about = {"fingerprint": getattr(data, "fingerprints", {}).get(config.split), "other_data": other}
        write_json(out, {**details, "model": run["names"]["model"], "checkpoint": checkpoint, "step": step, **about})
        if isinstance(model, Adversarial):
            print(f"{PLAYERS}:")
        elif isinstance(model, Coder) and not isinstance(model, Likelihood):
            print(f"{INSTEAD_CODER}:")
        print(f"{config.split} {text}" + (f"; CAREFUL: {sentence(config.split, other)}" if other else ""))
