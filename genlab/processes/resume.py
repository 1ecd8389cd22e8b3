"""Resume a run in its folder, as if it had never stopped.

The settings in `CHANGEABLE` may change: the length of training, the hardware, the optimiser. Model and data may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genlab.build import untrusted
from genlab.build.gate import trusted
from genlab.core import RequestError, nearest
from genlab.data.fingerprint import check_same
from genlab.processes import group, training
from genlab.processes.preparation import Prepared, check_config, prepare
from genlab.processes.run_folder import read_records, record_resume, restore_records
from genlab.processes.run_lock import locked
from genlab.request import length
from genlab.request.compose import format_error
from genlab.request.values import format_value
from genlab.system import signals
from genlab.train import batch_size, precision
from genlab.train.fit import check_resumable, is_complete
from genlab.train.plan import Plan
from genlab.train.resume_state import read_last

SECTIONS = ("trainer", "train", "optim")
KEYS = ("data.batch_size", "data.eval_batch_size", "data.root", "data.path", "logger.project", "compile")
CHANGEABLE = "trainer.*, train.*, optim.*, " + ", ".join(KEYS) + " and logger"


def run(folder: Path, overrides: list[str], command: str) -> dict[str, Any]:
    """Continue from last.ckpt, or begin anew if there is none yet. Returns the content of results.json.

    Packages that the config may use are named by `trust=` among the `overrides`, because a run folder may come from
    somebody else. Everything is built and checked first: a RequestError leaves the folder unchanged, byte for byte.
    """
    folder = Path(folder)
    file = folder / "config.yaml"
    if not file.is_file():
        what = "holds no run (no config.yaml)" if folder.is_dir() else "does not exist"
        raise RequestError(f"run={folder} {what}: give the folder that `genlab train` wrote")
    with ExitStack() as lock:
        config = run_config(file)
        config.trust = []
        for override in overrides:
            apply_override(config, override)
        _choose_length(config, [override.partition("=")[0] for override in overrides])
        with _described_by(file):
            plan = check_config(config)
            batch_size.settle(config, plan.accelerator)
            chosen = precision.settle(config, plan.accelerator)
            group.join(plan.accelerator)
            group.from_rank_zero(lambda: lock.enter_context(locked(folder)))
            prepared = _prepare(folder, config, plan)
        with signals.patiently():
            before = read_records(folder)
            try:
                group.from_rank_zero(lambda: record_resume(folder, config, bool(overrides), command))
                return training.start(folder, plan, prepared, config.trust, chosen)
            except RequestError:
                if group.is_rank_zero():
                    restore_records(folder, before)
                raise


def run_config(file: Path) -> DictConfig:
    """The config of a run, as plain values. Raises RequestError if it is not the config of a run."""
    config = untrusted.config_file(file)
    for section in ("model", "data", "optim", "trainer", "logger", "train", "names"):
        if not isinstance(config.get(section), dict):
            raise RequestError(f"{file} is not the config of a run: it has no section {section}")
    for key, kind in (("seed", int), ("compile", bool)):
        if type(config.get(key)) is not kind:
            raise RequestError(f"{file} is not the config of a run: {key} is {config.get(key)}")
    for key in ("minutes", "epochs", "pause_after", "repeat"):  # which older runs do not have
        config["train"].setdefault(key, None)
    return OmegaConf.create(config)


def apply_override(config: DictConfig, override: str) -> None:
    """Set one `key=value`, in place."""
    key, equals, value = override.partition("=")
    if key == "trust":
        packages: Any = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        config.trust = list(trusted(packages["trust"]))
        return
    if key == "logger" and equals:
        key = "logger.kind"
    section, _, name = key.rpartition(".")
    if not equals or not name or not (section in SECTIONS or key in (*KEYS, "logger.kind")):
        raise RequestError(
            f"{override}: a resumed run can only change {CHANGEABLE}; for other changes start a new run from its "
            "weights with genlab train init=RUN"
        )
    node = config[section] if section else config
    if name not in node:
        known = [f"{section}.{key!s}" for key in node] if section else list(KEYS)
        raise RequestError(f"{key} does not exist; {nearest(key, known)}")
    try:
        node[name] = OmegaConf.from_dotlist([f"value={value}"]).value
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"cannot read {format_value(override)}: {format_error(error)}") from error


def _choose_length(config: DictConfig, given: list[str]) -> None:
    """Let a new trainer.max_steps replace a budget, in place. A run keeps the number that it has chosen by a budget."""
    changed = next((key for key in length.KEYS if key in given and key.startswith("train.")), None)
    steps = config.trainer.max_steps
    if changed and steps is not None:
        raise RequestError(
            f"{changed}={config.train[changed.partition('.')[2]]}: this run has trainer.max_steps={steps}; train "
            "longer with more steps, or train for some minutes now and go on later with train.pause_after"
        )
    if steps is None or "trainer.max_steps" in given:
        length.choose(config, given)


def _prepare(folder: Path, config: DictConfig, plan: Plan) -> Prepared:
    """Read the last checkpoint, build data and model, and check that they fit together."""
    checkpoint = read_last(folder)
    _check_unfinished(folder, checkpoint, config, plan)
    prepared = prepare(config, config.get("init") if checkpoint is None else None)
    if checkpoint is not None:
        check_same(checkpoint["genlab"], prepared.data)
    settings: Any = OmegaConf.to_container(config)
    check_resumable(training.Run(prepared.model, prepared.data, settings, plan, folder, checkpoint=checkpoint))
    prepared.checkpoint = checkpoint
    return prepared


def _check_unfinished(folder: Path, checkpoint: dict[str, Any] | None, config: DictConfig, plan: Plan) -> None:
    """Raise RequestError if the run is finished."""
    if checkpoint is None:
        return
    step = checkpoint["genlab"]["step"]
    if not plan.max_steps:
        raise RequestError(f"trainer.max_steps=null: run={folder} is at step {step} already: give a number of steps")
    if step and step >= plan.max_steps and not (folder / "checkpoints" / "best.ckpt").exists():
        raise RequestError(
            f"trainer.max_steps={plan.max_steps}: run={folder} is at step {step} and has no validation yet, so that "
            f"there is nothing to evaluate: train longer with trainer.max_steps={2 * step}"
        )
    if (folder / "results.json").exists() and is_complete(checkpoint, config.train, plan.max_steps):
        longer = "train.patience=null" if checkpoint["genlab"]["stopped_early"] else f"trainer.max_steps={2 * step}"
        raise RequestError(f"run={folder} is finished at step {step}: train longer with {longer}")


@contextmanager
def _described_by(file: Path) -> Iterator[None]:
    """Turn errors that an edited config can cause into one sentence."""
    try:
        yield
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise RequestError(f"{file} does not describe a run ({type(error).__name__}: {first})") from error
