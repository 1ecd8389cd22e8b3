"""`genlab train`: one run folder from one config.

The folder is the run: once it holds config.yaml, `work(folder)` goes on from wherever it stands, in one process or on
every rank of several. `train` makes the folder, `resume` only checks it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from genlab import viz
from genlab.build import build, build_data, restore, untrusted
from genlab.build.models import model_name
from genlab.core import Adversarial, Interrupted, Primed, RequestError
from genlab.data import fingerprint
from genlab.measure.evaluation import evaluate_split
from genlab.processes import launch
from genlab.request import start_from
from genlab.request.compose import Request, check_sections, split_hydra
from genlab.request.numbers import check_seed
from genlab.request.progress import with_progress
from genlab.system import signals
from genlab.train import loggers, provenance
from genlab.train.checkpoint import read, write_json, write_text
from genlab.train.claim import claimed, new_folder
from genlab.train.fit import Fit, check, fit
from genlab.train.fitting import check_fitted, fits_itself
from genlab.train.learner import networks
from genlab.train.optim import AdamW
from genlab.train.plan import Plan
from genlab.viz import pictures


def command(request: Request) -> int:
    """`genlab train …`, or with -m every combination of what was given."""
    if request.sweep:
        from genlab.processes import sweep  # it imports this module

        return sweep.run(request)
    config, hydra = split_hydra(start_from.composed(request))
    named = any(word.startswith("hydra.run.dir=") for word in request.overrides)
    run(config, Path(hydra.run.dir), request.command, or_next=not named)
    return 0


def run(config: DictConfig, folder: Path, command: str, or_next: bool = False) -> dict[str, Any]:
    """Train what `config` (resolved, without the hydra node) says in a new `folder`; the content of results.json.

    RequestError for whatever can be known beforehand, and then nothing has been written. `or_next`: nobody has chosen
    the folder's name, so if it is taken the next one will do.
    """
    plan = checked(config)
    folder = Path(folder)
    joined = launch.world() > 1  # one of several processes started by torchrun or SLURM
    if joined:
        launch.join(plan.accelerator)
        folder = launch.from_zero(lambda: folder.absolute())
        parts = None
    else:
        parts = prepare(config, config.get("init"))
    with signals.patiently(), ExitStack() as claim:
        folder = launch.from_zero(lambda: open_folder(folder, config, command, claim, or_next))
        return work(folder, trust=config.trust) if joined else start(folder, plan, parts, config.trust)


def start(
    folder: Path, plan: Plan, parts: tuple[Any, nn.Module] | None = None, trust: Sequence[str] = ()
) -> dict[str, Any]:
    """Bring the run in `folder` to its end, in this process or in several that are started for it."""
    if launch.world() > 1 or plan.processes == 1:
        return work(folder, parts, trust)
    launch.ranks(plan.devices, "genlab.verbs.train:work", folder=str(folder.absolute()), trust=list(trust))
    return json.loads((folder / "results.json").read_text())


def checked(config: DictConfig) -> Plan:
    """The plan for this machine; a RequestError for everything in the config that cannot work."""
    check_sections(config)
    check_seed(config)
    plan = Plan.of(config.trainer)
    if plan.nodes > 1 and launch.world() == 1:
        raise RequestError(f"trainer.num_nodes={plan.nodes}: start one process per device with torchrun or srun")
    launch.check_cores(plan.devices, plan.accelerator)
    check(config.train)
    loggers.check(config.logger.kind)
    try:
        AdamW(**config.optim)
    except TypeError as error:
        raise RequestError(f"optim: {error}") from error
    return plan


def prepare(config: DictConfig, init: str | None = None) -> tuple[Any, nn.Module]:
    """Data module and freshly initialised model: the same weights for the same seed, on every rank. `init`: with the
    weights of that run.
    """
    data = build_data(config.data, config.trust)
    torch.manual_seed(config.seed)
    model = build(config.model, data.spec, config.trust)
    model.chosen_as = config.names.model
    if isinstance(model, Primed):
        model.check_images(len(data.split("train").labels))
    check_conditioning(data, model)
    check_players(config, model)
    if fits_itself(model):
        check_fitted(config.data, Plan.of(config.trainer))
    if config.compile and not networks(model):
        raise RequestError(f"compile=true needs a model with a network, and {model_name(model)} has none")
    if init is not None:
        start_from.load(model, init, config.trust)
    return data, model


def check_players(config: DictConfig, model: nn.Module) -> None:
    """RequestError for what only training in turns can do, or cannot."""
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
    """RequestError for data whose task is p(image | something) with a model that does not look at it.

    (A model that asks for what the data does not have refuses when it is built.)
    """
    context = getattr(data, "context", None)
    if context is None or getattr(model, "conditioning", "none") == context.kind:
        return
    given, what = context.name.rstrip("0123456789"), {"label": "label", "image": "second image"}[context.kind]
    raise RequestError(
        f"data/context={given} gives every image a {what} to be conditioned on, which {model_name(model)} does "
        f"not look at: add model/context={context.kind}"
    )


def open_folder(folder: Path, config: DictConfig, command: str, claim: ExitStack, or_next: bool) -> Path:
    """Make the folder, claim it for as long as `claim` lasts, and write down what is about to be run; the folder."""
    made: list[Path] = []
    try:
        if or_next or not folder.exists():
            folder = new_folder(folder, or_next)
            made.append(folder)
        claim.enter_context(claimed(folder))
        if (folder / "config.yaml").exists():
            raise RequestError(
                f"{folder} already holds a run: continue it with `genlab resume run={folder}` or give another "
                "hydra.run.dir"
            )
        for name, text in (
            ("command.txt", command + "\n"),
            ("versions.txt", provenance.versions()),
            ("config.yaml", OmegaConf.to_yaml(config, resolve=True)),
        ):
            if not (folder / name).exists():
                made.append(folder / name)
            write_text(folder / name, text)
    except (RequestError, OSError) as error:
        claim.close()
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path == folder else path.unlink(missing_ok=True)
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"hydra.run.dir={folder} cannot be written: {error.strerror}") from error
    return folder


def work(folder: str | Path, parts: tuple[Any, nn.Module] | None = None, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Train from where the folder stands, then evaluate the best weights once on test; called on every rank.

    `trust` comes from the command line, never out of the folder.
    """
    folder = Path(folder)
    resume = f"`genlab resume {shlex.quote(f'run={folder}')}`"
    last, results = folder / "checkpoints" / "last.ckpt", folder / "results.json"
    with signals.patiently():
        try:
            return _work(folder, parts, trust, resume)
        except signals.Stopped as stop:
            if results.exists():  # it is written once the test is done
                then = (
                    f"{results.name} is complete, and `genlab show ckpt={folder}` draws what is missing of the pictures"
                )
            elif last.exists():
                then = f"{resume} goes on from the last checkpoint, also with a test that is not done"
            else:
                then = f"nothing had been saved; {resume} begins anew"
            raise Interrupted(f"{stop} at once; {then}", stop.number) from None


def _work(folder: Path, parts: tuple[Any, nn.Module] | None, trust: Sequence[str], resume: str) -> dict[str, Any]:
    text = untrusted.read_text(folder / "config.yaml")
    config = OmegaConf.create(untrusted.plain_config(text, str(folder / "config.yaml")))
    config.trust = list(trust)
    plan = Plan.of(config.trainer)
    launch.join(plan.accelerator)
    if launch.world() > 1:
        plan = replace(plan, devices=launch.local_world(), nodes=launch.world() // launch.local_world())
    begun = (folder / "checkpoints" / "last.ckpt").exists()
    data, model = parts or prepare(config, None if begun else config.get("init"))
    card = {
        "config": text,
        "spec": asdict(data.spec),
        "version": provenance.genlab_version(),
        "commit": provenance.commit(),
        **fingerprint.card(data),
    }
    settings: Any = OmegaConf.to_container(config)
    outcome = fit(
        model, data, settings, plan, folder, card=card, draw=viz.save_grid, environment=launch.environment()
    )  # fmt: skip
    if outcome.interrupted:
        done = outcome.step >= plan.max_steps
        raise Interrupted(
            f"stopped by {signals.name(outcome.interrupted)} at step {outcome.step} of {plan.max_steps}; everything is "
            f"saved, " + (f"and {resume} has only the test left to do" if done else f"go on with {resume}"),
            outcome.interrupted,
        )
    with signals.impatiently():
        return conclude(folder, config, plan, data, model, outcome)


def conclude(folder: Path, config: DictConfig, plan: Plan, data: Any, model: nn.Module, outcome: Fit) -> dict[str, Any]:
    """Evaluate the best weights on the whole test split and write results.json."""
    best = folder / "checkpoints" / "best.ckpt"
    judged, _ = restore(best, weights="ema", trust=config.trust)  # raw where none were averaged, and then it says so
    weights: str = judged.weights  # type: ignore[assignment]
    device = torch.device("cuda", torch.cuda.current_device()) if plan.accelerator == "gpu" else torch.device("cpu")
    with torch.no_grad():
        evaluation = evaluate_split(judged.to(device), data, "test", weights=weights, seed=config.seed)
    results = {
        "test": evaluation.details,
        "valid": outcome.valid,
        **OmegaConf.to_container(config.names),  # type: ignore[dict-item]
        "parameters": sum(p.numel() for p in judged.parameters()),
        "steps": outcome.step,
        "best_step": read(best)["genlab"]["step"],
        "bad_steps": outcome.bad_steps,
        "seconds": round(outcome.seconds, 3),
        "images_per_second": round(outcome.images_per_second, 1),
        "peak_memory_bytes": outcome.peak_memory,
        "processes": plan.processes,
        "precision": plan.precision,
        "checkpoint": "checkpoints/best.ckpt",
    }
    if launch.is_zero():
        write_json(folder / "results.json", results)
        if config.train.sample_every:
            subject = pictures.Subject(judged, data, "valid", folder / "metrics.csv", with_progress=with_progress)
            pictures.draw(subject, pictures.everything(judged), folder / "pictures")
        print(f"test {evaluation.text}")
        print(folder)
    return results
