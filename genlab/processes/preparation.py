"""Prepare a run from its config: the plan for this machine, the data and the newly initialised model.

Every error that can be found beforehand is raised here as a RequestError, before a folder is made or a process started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from genlab.build import build, build_data
from genlab.build.models import model_name
from genlab.core import Adversarial, Primed, RequestError
from genlab.processes import group, launch
from genlab.request import start_from
from genlab.request.compose import check_sections
from genlab.request.numbers import check_seed
from genlab.train import loggers, optim
from genlab.train.compile import networks
from genlab.train.full_batch import check_full_batch, uses_full_batch
from genlab.train.plan import Plan
from genlab.train.run import check_train


@dataclass
class Prepared:
    """Data module, model and, for a run that is resumed, the content of its last checkpoint.

    The checkpoint is as large as model and optimiser together, so its user removes it from here (`take_checkpoint`).
    """

    data: Any
    model: nn.Module
    checkpoint: dict[str, Any] | None = None

    def take_checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint and drop the reference to it."""
        checkpoint, self.checkpoint = self.checkpoint, None
        return checkpoint


def check_config(config: DictConfig) -> Plan:
    """The plan for this machine. Raises RequestError for everything in the config that cannot work."""
    check_sections(config)
    check_seed(config)
    plan = Plan.of(config.trainer)
    if plan.nodes > 1 and group.world_size() == 1:
        raise RequestError(f"trainer.num_nodes={plan.nodes}: start one process per device with torchrun or srun")
    launch.check_cores(plan.devices, plan.accelerator)
    check_train(config.train)
    loggers.check(config.logger.kind)
    if isinstance(optim.settings(config.optim), optim.Muon) and plan.strategy == "fsdp":
        raise RequestError(
            "trainer.strategy=fsdp: optim=muon orthogonalises whole matrices, and fsdp splits them over devices; use "
            "trainer.strategy=ddp or optim=adamw"
        )
    return plan


def prepare(config: DictConfig, init: str | None = None) -> Prepared:
    """Build the data module and the model. The initial weights depend on the seed alone, so all ranks have the same.

    `init`: a run or checkpoint whose weights the model starts from.
    """
    data = build_data(config.data, config.trust)
    torch.manual_seed(config.seed)
    model = build(config.model, data.spec, config.trust)
    model.chosen_as = config.names.model
    if isinstance(model, Primed):
        model.check_images(len(data.split("train").labels))
    check_conditioning(data, model)
    check_adversarial(config, model)
    if uses_full_batch(model):
        check_full_batch(config.data, Plan.of(config.trainer))
    if config.compile and not networks(model):
        raise RequestError(f"compile=true needs a model with a network, and {model_name(model)} has none")
    if init is not None:
        start_from.load(model, init, config.trust)
    return Prepared(data, model)


def check_adversarial(config: DictConfig, model: nn.Module) -> None:
    """Raise RequestError for a GAN's settings with another model, and for settings that fit no GAN."""
    name, lr = model_name(model), config.optim.get("discriminator_lr")
    if not isinstance(model, Adversarial):
        if lr is not None:
            raise RequestError(f"optim.discriminator_lr={lr}: {name} has no discriminator; use optim=adamw")
        return
    if config.trainer.strategy == "fsdp":
        raise RequestError(f"trainer.strategy=fsdp: the two players of {name} are not split over devices; use ddp")
    if config.compile and getattr(model.loss, "penalised", False):  # type: ignore[attr-defined]
        raise RequestError(
            "compile=true: a gradient penalty needs second derivatives, which torch.compile does not give; "
            "use model.loss=hinge or nonsaturating"
        )


def check_conditioning(data: Any, model: nn.Module) -> None:
    """Raise RequestError for data whose task is p(image | context) with a model that does not use the context.

    The opposite case is an error when the model is built: it needs a context that the data does not have.
    """
    context = getattr(data, "context", None)
    if context is None or getattr(model, "conditioning", "none") == context.kind:
        return
    choice, what = context.name.rstrip("0123456789"), {"label": "label", "image": "second image"}[context.kind]
    raise RequestError(
        f"data/context={choice} gives every image a {what} to be conditioned on, which {model_name(model)} does "
        f"not use: add model/context={context.kind}"
    )
