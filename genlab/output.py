"""Standard output and error that never decide what becomes of the work.

A reader that goes away (`| head -1`), a descriptor that is closed (`2>&-`), a terminal that is gone or knows ASCII
alone, a full disk behind `> file`: Python raises for each of them, in the middle of a run, or ends a finished one with
a status of its own. Here what cannot be written is dropped, and what cannot be spelt is replaced by "?".
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

# The reader has had enough: its own affair. Everything else is a loss, and is said.
GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET)


class Dropping(io.FileIO):
    """A descriptor to which every write succeeds. `lost` is the first error that was not raised."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """All of `data`, or as much of it as can be written."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.lost is None:
            try:
                written = super().write(view[done:])
            except OSError as error:
                self.lost = error
                break
            if written is None:  # a pipe that does not block, and is full
                select.select([], [self], [])
            done += written or 0
        return len(view)


def steady() -> None:
    """Make sys.stdout and sys.stderr so, for this process, once. A stream that somebody has replaced is left alone."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would get its number, and then what is printed
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _on(descriptor, "utf-8"))
        elif _is_plain(stream, descriptor):
            setattr(sys, name, _on(descriptor, stream.encoding))  # at the start: nothing waits in the old one


def lost() -> OSError | None:
    """What kept standard output from being written in full, if it was more than a reader that went away."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return None
    error = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = error.lost if isinstance(error, Dropping) else None
    return None if error is None or error.errno in GONE else error


def _on(descriptor: int, encoding: str) -> io.TextIOWrapper:
    raw = Dropping(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=descriptor == 2 or raw.isatty()
    )


def _is_plain(stream: Any, descriptor: int) -> bool:
    """Whether it is the stream that Python opened on this descriptor."""
    try:
        same = stream.fileno() == descriptor
    except (OSError, ValueError, AttributeError):
        return False
    return (
        same
        and isinstance(getattr(getattr(stream, "buffer", None), "raw", None), io.FileIO)
        and not isinstance(stream.buffer.raw, Dropping)
    )
