"""A run from its config to results.json: in this process, or on several ranks.

Once the folder of a run has a config.yaml, `work(folder)` trains from its last checkpoint, or from the start. `run`
makes a new folder; `resume.run` checks an existing one; both then call `start`.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import nn

from genlab import viz
from genlab.build import restore, untrusted
from genlab.core import Interrupted
from genlab.data import fingerprint
from genlab.measure.evaluation import evaluate_split
from genlab.processes import group, launch
from genlab.processes.environment import environment
from genlab.processes.opening import opening
from genlab.processes.preparation import Prepared, check_config, prepare
from genlab.processes.run_folder import open_folder
from genlab.request import recipe, start_from
from genlab.request.compose import Request, split_hydra
from genlab.request.progress import with_progress
from genlab.system import signals
from genlab.system.atomic import write_json, write_text
from genlab.system.progress import without_progress
from genlab.train import batch_size, budget, loggers, precision, provenance
from genlab.train.callbacks import PAUSE
from genlab.train.checkpoint import read
from genlab.train.fit import FitResult, Run, fit
from genlab.train.plan import Plan
from genlab.train.resume_state import read_last
from genlab.viz import pictures
from genlab.viz.subject import Subject


def from_request(request: Request) -> Path:
    """Train as a command line says. Returns the folder of the run; raises RequestError if the request is wrong."""
    request, note = recipe.taken(request)
    config, hydra = split_hydra(start_from.composed(request))
    named = any(word.startswith("hydra.run.dir=") for word in request.overrides)
    opened: list[Path] = []
    run(config, Path(hydra.run.dir), request.command, or_next=not named, note=note, opened=opened.append)
    return opened[0]


def run(
    config: DictConfig,
    folder: Path,
    command: str,
    or_next: bool = False,
    note: str = "",
    opened: Callable[[Path], object] = lambda folder: None,
) -> dict[str, Any]:
    """Train by `config` in a new `folder`. Returns the content of results.json.

    `config` is resolved and has no hydra section. Raises RequestError if the request cannot work; then nothing has been
    written. `or_next`: if the folder exists, take the next free name (for a name that the user has not chosen).
    `note`: for the line that is printed when training begins. `opened` is called with the folder that was made.
    """
    plan = check_config(config)
    batch_size.settle(config, plan.accelerator)
    chosen = precision.settle(config, plan.accelerator)
    folder = Path(folder)
    joined = group.world_size() > 1  # one of several processes started by torchrun or SLURM
    if joined:
        group.join(plan.accelerator)
        folder = group.from_rank_zero(lambda: folder.absolute())
        prepared = None
    else:
        prepared = prepare(config, config.get("init"))
    with signals.patiently(), ExitStack() as lock:
        folder = group.from_rank_zero(lambda: open_folder(folder, config, command, lock, or_next))
        opened(folder)
        note = "; ".join(filter(None, [note, chosen]))
        if joined:
            return work(folder, trust=config.trust, note=note)
        return start(folder, plan, prepared, config.trust, note)


def start(
    folder: Path, plan: Plan, prepared: Prepared | None = None, trust: Sequence[str] = (), note: str = ""
) -> dict[str, Any]:
    """Train and evaluate the run in `folder`, in this process or in several that are started here."""
    if group.world_size() > 1 or plan.processes == 1:
        return work(folder, prepared, trust, note)
    if prepared is not None:
        prepared.take_checkpoint()  # the ranks read their own
    launch.ranks(
        plan.devices, "genlab.processes.training:work", folder=str(folder.absolute()), trust=list(trust), note=note
    )
    results = folder / "results.json"
    return json.loads(results.read_text()) if results.exists() else {}  # none of a run that has paused


def work(
    folder: str | Path, prepared: Prepared | None = None, trust: Sequence[str] = (), note: str = ""
) -> dict[str, Any]:
    """Train from the last checkpoint of the folder, if any, then evaluate the best weights once on the test split.

    It is called on every rank. `trust` is from the command line, never from the folder. `note`: see `opening.py`.
    Returns the content of results.json, or {} if the run has paused (train.pause_after). Raises Interrupted if a
    signal ends it.
    """
    folder = Path(folder)
    resume = f"`genlab resume {shlex.quote(f'run={folder}')}`"
    last, results = folder / "checkpoints" / "last.ckpt", folder / "results.json"
    with signals.patiently():
        try:
            return _work(folder, prepared, trust, resume, note)
        except signals.Stopped as stop:
            if results.exists():  # it is written once the test is done
                advice = f"{results.name} is complete, and `genlab show ckpt={folder}` draws the missing pictures"
            elif last.exists():
                advice = f"{resume} goes on from the last checkpoint, also with a test that is not done"
            else:
                advice = f"nothing had been saved; {resume} begins anew"
            raise Interrupted(f"{stop} at once; {advice}", stop.number) from None


def _work(folder: Path, prepared: Prepared | None, trust: Sequence[str], resume: str, note: str) -> dict[str, Any]:
    text = untrusted.read_text(folder / "config.yaml")
    config = OmegaConf.create(untrusted.plain_config(text, str(folder / "config.yaml")))
    config.trust = list(trust)
    plan = Plan.of(config.trainer)
    group.join(plan.accelerator)
    if group.world_size() > 1:
        plan = replace(
            plan, devices=group.local_world_size(), nodes=group.world_size() // group.local_world_size()
        )  # fmt: skip
    if prepared is None:
        begun = (folder / "checkpoints" / "last.ckpt").exists()
        prepared = prepare(config, None if begun else config.get("init"))
        prepared.checkpoint = read_last(folder)
    data, model = prepared.data, prepared.model
    settings: Any = OmegaConf.to_container(config)
    run = Run(model, data, settings, plan, folder, checkpoint=prepared.take_checkpoint())
    say(opening(run, note))
    if budget.is_open(settings):
        text = choose_length(run, config)
    run.card = {
        "config": text,
        "spec": asdict(data.spec),
        "version": provenance.genlab_version(),
        "commit": provenance.commit(),
        **fingerprint.card(data),
    }
    plan = run.plan
    with loggers.opened(run) as log_to:
        result = fit(run, log_to=log_to, draw=viz.save_grid, environment=environment())
        say(result.verdict)
        if not result.interrupted:
            with signals.impatiently():
                return conclude(folder, config, plan, data, result, log_to)
    if result.interrupted == PAUSE and not signals.received:
        if group.is_rank_zero():
            print(f"paused at step {result.step} of {plan.max_steps}; everything is saved, go on with {resume}")
        return {}
    done = result.step >= plan.max_steps
    raise Interrupted(
        f"stopped by {signals.name(result.interrupted)} at step {result.step} of {plan.max_steps}; everything is "
        f"saved, " + (f"and {resume} has only the test left to do" if done else f"go on with {resume}"),
        result.interrupted,
    )


def choose_length(run: Run, config: DictConfig) -> str:
    """Choose the number of steps and the intervals that the config leaves open (`budget.settle`), for `run` and
    `config`; rank zero writes them into config.yaml and prints them. Returns the text of config.yaml.
    """
    with signals.patiently():
        chosen, line = budget.settle(run, draw=viz.save_grid, environment=environment())
    steps = chosen.pop("max_steps")
    config.trainer.max_steps = steps
    config.train.update(chosen)
    text = OmegaConf.to_yaml(config)
    run.plan = replace(run.plan, max_steps=steps)
    run.config = OmegaConf.to_container(config)  # type: ignore[assignment]
    if group.is_rank_zero():
        write_text(run.folder / "config.yaml", text)
    say(line)
    return text


def say(line: str) -> None:
    """Rank zero prints the line, unless it is empty, where progress is printed."""
    if line and group.is_rank_zero():
        print(line, file=sys.stderr, flush=True)


def conclude(
    folder: Path, config: DictConfig, plan: Plan, data: Any, result: FitResult, log_to: Sequence[Logger] = ()
) -> dict[str, Any]:
    """Evaluate the best weights on the whole test split; rank zero writes results.json, draws and prints.

    A tracker among the loggers gets the numbers of the test, at the last step.
    """
    best = folder / "checkpoints" / "best.ckpt"
    model, _ = restore(best, weights="ema", trust=config.trust)  # or raw, if none were averaged
    weights: str = model.weights  # type: ignore[assignment]
    device = torch.device("cuda", torch.cuda.current_device()) if plan.accelerator == "gpu" else torch.device("cpu")
    share = math.ceil(len(data.split("test").labels) / group.world_size())  # images of this rank
    shown = with_progress if group.is_rank_zero() else without_progress
    evaluation = shown(
        "test", share,
        lambda advance: evaluate_split(
            model.to(device), data, "test", weights=weights, seed=config.seed, on_batch=advance
        ),
    )  # fmt: skip
    results = {
        "test": evaluation.details,
        "valid": result.valid,
        **OmegaConf.to_container(config.names),  # type: ignore[dict-item]
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": result.step,
        "best_step": read(best)["genlab"]["step"],
        "bad_steps": result.bad_steps,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 1),
        "peak_memory_bytes": result.peak_memory,
        "processes": plan.processes,
        "precision": plan.precision,
        "checkpoint": "checkpoints/best.ckpt",
    }
    if group.is_rank_zero():
        write_json(folder / "results.json", results)
        for tracker in loggers.trackers(log_to):
            tracker.log_metrics({f"test/{name}": value for name, value in evaluation.terms.items()}, result.step)
        if config.train.sample_every:
            draw_pictures(model, data, folder)
        print(f"test {evaluation.text}")
        print(folder)
    return results


def draw_pictures(model: nn.Module, data: Any, folder: Path) -> None:
    """The pictures of `genlab show`, of the validation split, in the run folder."""
    subject = Subject(model, data, "valid", folder / "metrics.csv", with_progress=with_progress)
    pictures.draw(subject, pictures.everything(model, data), folder / "pictures")
