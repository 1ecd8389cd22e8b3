"""The files that describe a run. They are written when a run begins, and updated when it is resumed.

    config.yaml     the resolved config
    command.txt     the command lines, the first one and one for each time the run was resumed
    versions.txt    versions of the packages that began the run, and the machine

A folder with a config.yaml is a run. Other modules write the results of training (checkpoints, metrics.csv,
results.json, pictures).
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from genlab.core import RequestError
from genlab.processes.run_lock import locked
from genlab.system.atomic import atomically, remove_left_over, write_text
from genlab.train import provenance

RECORDS = ("config.yaml", "command.txt", "results.json", "metrics.csv")  # resuming may change them before training


def new_folder(folder: Path, or_next: bool) -> Path:
    """Make `folder` and return it. If it exists, return it as it is or, with `or_next`, make `folder`-2, -3, … instead.

    Of many processes that make the same folder, exactly one succeeds.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    number, candidate = 1, folder
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            if not or_next:
                return candidate
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")


def open_folder(folder: Path, config: DictConfig, command: str, lock: ExitStack, or_next: bool) -> Path:
    """Make the folder of a new run, lock it until `lock` is closed, and write its records. Returns the folder.

    Raises RequestError if the folder holds a run already, is in use or cannot be written; nothing new is left in that
    case.
    """
    created: list[Path] = []
    try:
        if or_next or not folder.exists():
            folder = new_folder(folder, or_next)
            created.append(folder)
        lock.enter_context(locked(folder))
        if (folder / "config.yaml").exists():
            raise RequestError(
                f"{folder} already holds a run: continue it with `genlab resume run={folder}` or give another "
                "hydra.run.dir"
            )
        for name, text in (
            ("command.txt", command + "\n"),
            ("versions.txt", provenance.versions()),
            ("config.yaml", OmegaConf.to_yaml(config, resolve=True)),  # last: with it the folder is a run
        ):
            if not (folder / name).exists():
                created.append(folder / name)
            write_text(folder / name, text)
    except (RequestError, OSError) as error:
        lock.close()
        for path in reversed(created):
            with suppress(OSError):
                path.rmdir() if path == folder else path.unlink(missing_ok=True)
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"hydra.run.dir={folder} cannot be written: {error.strerror}") from error
    return folder


def read_records(folder: Path) -> dict[str, bytes]:
    """The content of the existing files of `RECORDS`, by file name, for `restore_records`."""
    return {name: path.read_bytes() for name in RECORDS if (path := folder / name).is_file()}


def record_resume(folder: Path, config: DictConfig, changed: bool, command: str) -> None:
    """Add the command, write the config if it was `changed`; remove outdated results and left-over temporary files."""
    try:
        past = folder / "command.txt"
        write_text(past, (past.read_text(encoding="utf-8") if past.exists() else "") + command + "\n")
        if changed:
            write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
        (folder / "results.json").unlink(missing_ok=True)
        remove_left_over(folder)
    except OSError as error:
        raise RequestError(f"run={folder} cannot be written: {error.strerror or error}") from error


def restore_records(folder: Path, before: dict[str, bytes]) -> None:
    """Restore the files that `read_records` returned, after a rank or a logger has raised an error."""
    for name, content in before.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            with suppress(OSError), atomically(path) as temporary:
                temporary.write_bytes(content)
