"""The progress of the verbs that go through many images: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress

from genlab.system.progress import with_plain_lines


def with_progress(title: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """Call work(advance) and return its result.

    `work` calls advance(k) after every k of the `total` items. The progress is shown on standard error.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return with_plain_lines(title, total, work)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        return work(lambda done: progress.advance(task, done))
