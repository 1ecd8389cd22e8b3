"""Spread independent pieces of work over processes of this machine, and return the results in order.

Each process opens the model once. Only a few pieces are under way at a time, so memory does not grow with their number.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

_opened: list[Any] = []  # in a worker: what its `opening` returned


def in_order(
    opening: Callable[..., Any],
    arguments: tuple[Any, ...],
    work: Callable[..., Any],
    pieces: Iterable[tuple[Any, ...]],
    workers: int,
) -> Iterator[Any]:
    """The results of work(opened, *piece) for every piece, in order; `opened` is opening(*arguments).

    With one worker everything happens in this process. Functions and arguments must be picklable.
    """
    if workers == 1:
        opened = opening(*arguments)
        for piece in pieces:
            yield work(opened, *piece)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with torch's threads can deadlock
    with ProcessPoolExecutor(workers, context, _open, (opening, arguments)) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for piece in pieces:
                waiting.append(pool.submit(_work, work, piece))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _open(opening: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _opened.append(opening(*arguments))


def _work(work: Callable[..., Any], piece: tuple[Any, ...]) -> Any:
    return work(_opened[0], *piece)
