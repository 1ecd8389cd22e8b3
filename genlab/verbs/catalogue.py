"""`genlab list [group]`: the models, data sets, experiments and other parts, each with its config's first comment."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from genlab.core import RequestError, nearest
from genlab.request.folders import configs_folder, groups


def run(words: list[str]) -> None:
    """Print one table (plain lines when piped) for each group asked for; all main groups without a word."""
    folder = configs_folder()
    known = groups([folder])
    for word in words:
        if word not in known:
            raise RequestError(f"genlab list: no group {word!r}: {nearest(word, known)}")
    console = Console()
    for group in words or [name for name in ("model", "data", "experiment") if name in known]:
        table = Table("", title=f"{group}=", title_justify="left", box=None, show_header=False)
        table.add_column()
        for name in known[group]:
            about = _about((folder / group / f"{name}.yaml").read_text())
            if console.is_terminal:
                table.add_row(name, about)
            else:
                print(f"{group}={name}\t{about}")
        if console.is_terminal:
            console.print(table)


def _about(text: str) -> str:
    """The comment a config begins with, as one line; not the package directive."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
