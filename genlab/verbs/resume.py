"""`genlab resume run=DIR`: go on in the same folder, as if the run had never stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genlab.build import untrusted
from genlab.build.gate import trusted
from genlab.core import RequestError, nearest
from genlab.data.fingerprint import check_same
from genlab.processes import launch
from genlab.request.compose import Request, format_error
from genlab.request.values import format_value
from genlab.system import signals
from genlab.train.checkpoint import atomically, write_text
from genlab.train.claim import claimed
from genlab.train.fit import is_complete, resumable
from genlab.train.going_on import read_last
from genlab.train.plan import Plan
from genlab.verbs import train

# How long, on what and how a run goes on; not what is trained on what.
SECTIONS = ("trainer", "train", "optim")
KEYS = ("data.batch_size", "data.eval_batch_size", "data.root", "data.path", "logger.project", "compile")
CHANGEABLE = "trainer.*, train.*, optim.*, " + ", ".join(KEYS) + " and logger"
TOUCHED = ("config.yaml", "command.txt", "results.json", "metrics.csv")


def command(request: Request) -> int:
    """`genlab resume run=DIR [trainer.…=…] [train.…=…]`."""
    folders = [word.partition("=")[2] for word in request.overrides if word.startswith("run=")]
    if len(folders) != 1 or not folders[0] or request.sweep:
        raise RequestError("genlab resume needs run=DIR, the folder that `genlab train` wrote")
    rest = [word for word in request.overrides if not word.startswith("run=")]
    run(Path(folders[0]).expanduser(), rest, request.command)
    return 0


def run(folder: Path, overrides: list[str], command: str) -> dict[str, Any]:
    """Continue from last.ckpt, or from the start if the run was killed before the first; the content of results.json.

    `overrides` may change how long and on what it trains (`CHANGEABLE`), not what. The packages that its config may
    name are given by `trust=` among them: a run folder of somebody else cannot trust itself. A refusal (RequestError)
    leaves the folder as it was, byte for byte: everything is built and checked first.
    """
    folder = Path(folder)
    file = folder / "config.yaml"
    if not file.is_file():
        what = "holds no run (no config.yaml)" if folder.is_dir() else "does not exist"
        raise RequestError(f"run={folder} {what}: give the folder that `genlab train` wrote")
    with ExitStack() as claim:
        config = run_config(file)
        config.trust = []
        for override in overrides:
            apply(config, override)
        with _described_by(file):
            plan = train.checked(config)
            launch.join(plan.accelerator)
            launch.from_zero(lambda: claim.enter_context(claimed(folder)))
            _check_unfinished(folder, config, plan)
            begun = (folder / "checkpoints" / "last.ckpt").exists()
            parts = train.prepare(config, None if begun else config.get("init"))
            if begun:
                check_same(read_last(folder)["genlab"], parts[0])  # type: ignore[index]
            settings: Any = OmegaConf.to_container(config)
            resumable(folder, parts[1], parts[0], settings, plan)
        with signals.patiently():
            before = {name: path.read_bytes() for name in TOUCHED if (path := folder / name).is_file()}
            try:
                launch.from_zero(lambda: record(folder, config, bool(overrides), command))
                return train.start(folder, plan, parts, config.trust)
            except RequestError:
                if launch.is_zero():
                    _put_back(folder, before)
                raise


def run_config(file: Path) -> DictConfig:
    """The config of a run, as values alone."""
    config = untrusted.config_file(file)
    for section in ("model", "data", "optim", "trainer", "logger", "train", "names"):
        if not isinstance(config.get(section), dict):
            raise RequestError(f"{file} is not the config of a run: it has no section {section}")
    for key, kind in (("seed", int), ("compile", bool)):
        if type(config.get(key)) is not kind:
            raise RequestError(f"{file} is not the config of a run: {key} is {config.get(key)}")
    return OmegaConf.create(config)


def _check_unfinished(folder: Path, config: DictConfig, plan: Plan) -> None:
    """RequestError when there is nothing left to do."""
    state = read_last(folder)
    step = state["genlab"]["step"] if state else 0
    if step and step >= plan.max_steps and not (folder / "checkpoints" / "best.ckpt").exists():
        raise RequestError(
            f"trainer.max_steps={plan.max_steps}: run={folder} is at step {step} and has no validation yet, so that "
            f"there is nothing to evaluate: train longer with trainer.max_steps={2 * step}"
        )
    state = state if (folder / "results.json").exists() else None
    if state and is_complete(state, config.train, plan.max_steps):
        step = state["genlab"]["step"]
        longer = "train.patience=null" if state["genlab"]["stopped_early"] else f"trainer.max_steps={2 * step}"
        raise RequestError(f"run={folder} is finished at step {step}: train longer with {longer}")


def apply(config: DictConfig, override: str) -> None:
    """Set one `key=value`, in place."""
    key, equals, value = override.partition("=")
    if key == "trust":
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        config.trust = list(trusted(given["trust"]))
        return
    if key == "logger" and equals:
        key = "logger.kind"
    section, _, name = key.rpartition(".")
    if not equals or not name or not (section in SECTIONS or key in (*KEYS, "logger.kind")):
        raise RequestError(
            f"{override}: a resumed run can only change {CHANGEABLE}; for the rest start a new run, from its weights "
            "with genlab train init=RUN"
        )
    node = config[section] if section else config
    if name not in node:
        known = [f"{section}.{key!s}" for key in node] if section else list(KEYS)
        raise RequestError(f"{key} does not exist; {nearest(key, known)}")
    try:
        node[name] = OmegaConf.from_dotlist([f"value={value}"]).value
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"cannot read {format_value(override)}: {format_error(error)}") from error


def record(folder: Path, config: DictConfig, changed: bool, command: str) -> None:
    """Write down how the run goes on; its old results are no longer its results."""
    try:
        past = folder / "command.txt"
        write_text(past, (past.read_text(encoding="utf-8") if past.exists() else "") + command + "\n")
        if changed:
            write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
        (folder / "results.json").unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(f"run={folder} cannot be written: {error.strerror or error}") from error


def _put_back(folder: Path, before: dict[str, bytes]) -> None:
    """The run refused after all, when its ranks or its logger started."""
    for name, content in before.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            with suppress(OSError), atomically(path) as temporary:
                temporary.write_bytes(content)


@contextmanager
def _described_by(file: Path) -> Iterator[None]:
    """What a config that somebody has edited can do wrong, as one sentence."""
    try:
        yield
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise RequestError(f"{file} does not describe a run ({type(error).__name__}: {first})") from error
