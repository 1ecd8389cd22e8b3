"""`genlab list [group]`: the choices of a config group, each with the comment that its config begins with.

Without a group, the models, data sets and experiments are listed.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from genlab.request.folders import configs_folder, groups


def run(words: list[str]) -> None:
    """Print a table for each of the groups `words`, or lines of plain text if standard output is no terminal."""
    folder = configs_folder()
    known = groups([folder])
    for word in words:
        if word not in known:
            from genlab.core import RequestError, nearest  # here, because it imports torch, which takes seconds

            raise RequestError(f"genlab list: no group {word!r}: {nearest(word, known)}")
    console = Console()
    for group in words or [name for name in ("model", "data", "experiment") if name in known]:
        table = Table("", title=f"{group}=", title_justify="left", box=None, show_header=False)
        table.add_column()
        for name in known[group]:
            description = _description((folder / group / f"{name}.yaml").read_text())
            if console.is_terminal:
                table.add_row(name, description)
            else:
                print(f"{group}={name}\t{description}")
        if console.is_terminal:
            console.print(table)


def _description(text: str) -> str:
    """The comment that a config begins with, as one line and without Hydra's package directive."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
