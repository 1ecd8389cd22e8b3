"""The interface by which long work reports its progress, and plain lines of progress for log files.

A function that works through many images takes an argument `with_progress` and calls `with_progress(title, total,
work)`. That calls `work(advance)` and returns its result; `work` calls `advance(n)` whenever n more images are done.
The verbs pass a `with_progress` that draws a progress bar (`genlab.request.progress`), training one that shows it below
its own bar (`genlab.train.progress`). The default shows nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

WithProgress = Callable[[str, int, Callable[[Callable[[int], None]], Any]], Any]
EVERY_SECONDS = 10.0  # between two plain lines


def without_progress(title: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """The result of `work`; nothing is shown."""
    return work(lambda done: None)


def with_plain_lines(title: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """The result of `work`; every ten seconds a line with what is done and the time left goes to standard error."""
    start = shown = time.perf_counter()
    so_far = 0

    def advance(done: int) -> None:
        nonlocal shown, so_far
        so_far += done
        now = time.perf_counter()
        if now - shown >= EVERY_SECONDS and so_far < total:
            shown = now
            left = (total - so_far) * (now - start) / so_far
            print(f"{title} {so_far:,}/{total:,}  {clock(left)} left", file=sys.stderr, flush=True)

    return work(advance)


def clock(seconds: float) -> str:
    """Seconds as text: 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
