"""Standard output and error that never end the work or change its exit status.

The reader may go away (`| head -1`), a descriptor may be closed (`2>&-`), the terminal may be gone or know only ASCII,
the disk behind `> file` may be full. Each time Python would raise in the middle of a run, or end a finished run with a
status of its own. Here output that cannot be written is dropped, and a character that cannot be encoded becomes "?".
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

# The reader has gone away, which is its own choice. Any other error is a loss, and is reported.
GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET)


class Dropping(io.FileIO):
    """A descriptor to which every write succeeds. `lost` is the first error that was not raised."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Write as much of `data` as can be written, and return the length of all of it."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.lost is None:
            try:
                written = super().write(view[done:])
            except OSError as error:
                self.lost = error
                break
            if written is None:  # a non-blocking pipe that is full
                select.select([], [self], [])
            done += written or 0
        return len(view)


def steady() -> None:
    """Replace sys.stdout and sys.stderr by such streams. A stream that other code has replaced is left alone."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would get this number, and then what is printed
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _on(descriptor, "utf-8", unbuffered=False))
        elif type(_raw(stream)) is io.FileIO and stream.fileno() == descriptor:  # the one that Python opened
            setattr(sys, name, _on(descriptor, stream.encoding, unbuffered=stream.buffer is _raw(stream)))


def lost() -> OSError | None:
    """The error that cut standard output short; None if there was none, or if the reader just went away."""
    raw = _raw(sys.stdout)
    if not isinstance(raw, Dropping):
        return None
    sys.stdout.flush()
    return None if raw.lost is None or raw.lost.errno in GONE else raw.lost


def _on(descriptor: int, encoding: str, unbuffered: bool) -> io.TextIOWrapper:
    raw = Dropping(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding=encoding,
        errors="replace",
        line_buffering=descriptor == 2 or raw.isatty(),
        write_through=unbuffered,
    )


def _raw(stream: Any) -> Any:
    """The raw file below a text stream. With PYTHONUNBUFFERED there is no buffer in between."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)
