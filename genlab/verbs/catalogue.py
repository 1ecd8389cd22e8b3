"""`genlab list [group]`: the choices of a config group, each with the comment that its config begins with.

Without a group, the models, data sets and experiments are listed. With --config-dir, those of the user's folder too.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from genlab.request.folders import configs_folder, description, groups


def run(words: list[str]) -> None:
    """Print a table for each of the groups in `words`, or lines of plain text if standard output is no terminal."""
    words, folders = _without_folders(words)
    known = groups(folders)
    for word in words:
        if word not in known:
            from genlab.core import RequestError, nearest  # here, because it imports torch, which takes seconds

            raise RequestError(f"genlab list: no group {word!r}: {nearest(word, known)}")
    console = Console()
    for group in words or [name for name in ("model", "data", "experiment") if name in known]:
        table = Table("", title=f"{group}=", title_justify="left", box=None, show_header=False)
        table.add_column()
        for name in known[group]:
            files = (folder / group / f"{name}.yaml" for folder in folders[::-1])  # the user's own come first
            text = description(next(file for file in files if file.is_file()).read_text(encoding="utf-8"))
            if console.is_terminal:
                table.add_row(name, text)
            else:
                print(f"{group}={name}\t{text}")
        if console.is_terminal:
            console.print(table)


def _without_folders(words: list[str]) -> tuple[list[str], list[Path]]:
    """(the groups among the words; genlab's configs and the folders of --config-dir)."""
    rest, folders = iter(words), [configs_folder()]
    left = []
    for word in rest:
        if word == "--config-dir" or word.startswith("--config-dir="):
            folder = Path(word.partition("=")[2] or next(rest, "")).expanduser()
            if not folder.is_dir():
                from genlab.core import RequestError

                raise RequestError(f"--config-dir {folder} is not a folder")
            folders.append(folder)
        else:
            left.append(word)
    return left, folders
