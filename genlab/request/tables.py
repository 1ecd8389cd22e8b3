"""Results as a table on a terminal, and as lines elsewhere, where another program may read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], lines: Iterable[str], footnote: str = ""
) -> None:
    """Print `rows` under `columns` with the title above. If standard output is no terminal: `lines`, then the title.

    The footnote, if there is one, comes last.
    """
    console = Console()
    if console.is_terminal:
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        print("\n".join([*lines, title]))
    if footnote:
        print(footnote)
