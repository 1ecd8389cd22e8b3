"""The interface by which long work reports its progress.

A function that works through many images takes an argument `with_progress` and calls `with_progress(title, total,
work)`. That calls `work(advance)` and returns its result; `work` calls `advance(n)` whenever n more images are done.
The verbs pass a `with_progress` that draws a progress bar (`genlab.request.progress`). The default shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WithProgress = Callable[[str, int, Callable[[Callable[[int], None]], Any]], Any]


def without_progress(title: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """The result of `work`; nothing is shown."""
    return work(lambda done: None)
