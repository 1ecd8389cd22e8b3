"""`genlab resume run=DIR`: go on in the same folder, as if the run had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genlab import foreign
from genlab.compose import Request, shown_error
from genlab.core import RequestError, nearest
from genlab.data.fingerprint import check_same
from genlab.gate import trusted
from genlab.tasks import launch, train
from genlab.train.checkpoint import check_resumable, read, write_text
from genlab.train.fit import is_complete
from genlab.values import shown

SECTIONS = ("trainer", "train")


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

    `overrides` may change how long and on what it trains (`trainer.*`, `train.*`), not what. The packages that its
    config may name are given by `trust=` among them: a run folder of somebody else cannot trust itself.
    """
    folder = Path(folder)
    file = folder / "config.yaml"
    if not file.is_file():
        what = "holds no run (no config.yaml)" if folder.is_dir() else "does not exist"
        raise RequestError(f"run={folder} {what}: give the folder that `genlab train` wrote")
    config = run_config(file)
    config.trust = []
    for override in overrides:
        apply(config, override)
    plan = train.checked(config)
    last = folder / "checkpoints" / "last.ckpt"
    state = read(last) if last.exists() else None
    if state:
        check_resumable(state, last)
    if state and (folder / "results.json").exists() and is_complete(state, config.train, plan.max_steps):
        step = state["genlab"]["step"]
        longer = "train.patience=null" if state["genlab"]["stopped_early"] else f"trainer.max_steps={2 * step}"
        raise RequestError(f"run={folder} is finished at step {step}: train longer with {longer}")
    if last.exists():
        check_same(read(last)["genlab"], train.prepare(config)[0])
    launch.join(plan.accelerator)
    launch.from_zero(lambda: record(folder, config, bool(overrides), command))
    return train.start(folder, plan, trust=config.trust)


def run_config(file: Path) -> DictConfig:
    """The config of a run, as values alone."""
    config = foreign.config_file(file)
    for section in ("model", "data", "optim", "trainer", "logger", "train", "names"):
        if not isinstance(config.get(section), dict):
            raise RequestError(f"{file} is not the config of a run: it has no section {section}")
    for key, kind in (("seed", int), ("compile", bool)):
        if type(config.get(key)) is not kind:
            raise RequestError(f"{file} is not the config of a run: {key} is {config.get(key)}")
    return OmegaConf.create(config)


def apply(config: DictConfig, override: str) -> None:
    """Set one `section.key=value`, in place."""
    key, equals, value = override.partition("=")
    if key == "trust":
        config.trust = list(trusted(OmegaConf.to_container(OmegaConf.from_dotlist([override])).get("trust")))
        return
    section, _, name = key.partition(".")
    if not equals or section not in SECTIONS or not name:
        raise RequestError(
            f"{override}: a resumed run can only change trainer.* and train.*; start a new run for the rest"
        )
    if name not in config[section]:
        raise RequestError(f"{key} does not exist; {nearest(key, [f'{section}.{known}' for known in config[section]])}")
    try:
        config[section][name] = OmegaConf.from_dotlist([f"value={value}"]).value
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"cannot read {shown(override)}: {shown_error(error)}") from error


def record(folder: Path, config: DictConfig, changed: bool, command: str) -> None:
    """Write down how the run goes on; its old results are no longer its results."""
    write_text(folder / "command.txt", (folder / "command.txt").read_text() + command + "\n")
    if changed:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
    (folder / "results.json").unlink(missing_ok=True)
