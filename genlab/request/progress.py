"""A progress bar for the verbs that go through many images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress


def with_progress(title: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """Call work(advance) and return its result.

    `work` calls advance(k) after every k of the `total` items. If standard error is a terminal, a bar is shown there.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return work(lambda done: None)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        return work(lambda done: progress.advance(task, done))
