"""Freed memory stays with the process.

By default glibc gives a large block back to the operating system as soon as it is freed. The next tensor of the same
size then gets new pages, which the kernel must clear and map one by one. Evaluation, which makes the same tensors for
every batch, spent a third of its time on that. The two thresholds below keep up to 2 GiB of freed memory for reuse.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3), from malloc.h


def keep_freed_memory() -> None:
    """Set the thresholds, where the C library has them (glibc). Elsewhere nothing happens."""
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 2**30)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
