"""Standard output and standard error that cannot stop the work.

The reader may go away (`| head -1`), a descriptor may be closed (`2>&-`), the terminal may be gone or support only
ASCII, and the disk behind `> file` may be full. In each case Python would raise an error in the middle of a run, or end
a finished run with an exit status of its own. Here output that cannot be written is dropped, and a character that
cannot be encoded becomes "?".
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

# The reader has gone away, probably on purpose. Any other error is reported at the end.
READER_GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET)


class Dropping(io.FileIO):
    """A descriptor to which every write succeeds. After the first error, kept in `error`, all output is dropped."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write as much of `data` as can be written, and return the length of all of it."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                written = super().write(view[done:])
            except OSError as error:
                self.error = error
                break
            if written is None:  # a non-blocking pipe that is full
                select.select([], [self], [])
            done += written or 0
        return len(view)


def steady() -> None:
    """Replace sys.stdout and sys.stderr by streams that drop what they cannot write.

    A stream that other code has already replaced is left as it is.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # It is closed. The next file to be opened would get its number, and printed text would go into that file.
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _on(descriptor, "utf-8", unbuffered=False))
        elif type(_raw(stream)) is io.FileIO and stream.fileno() == descriptor:  # opened by Python itself
            setattr(sys, name, _on(descriptor, stream.encoding, unbuffered=stream.buffer is _raw(stream)))


def lost() -> OSError | None:
    """The error that cut standard output short. None if there was none or the reader has gone away."""
    raw = _raw(sys.stdout)
    if not isinstance(raw, Dropping):
        return None
    sys.stdout.flush()
    return None if raw.error is None or raw.error.errno in READER_GONE else raw.error


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
    """The raw file below a text stream. With PYTHONUNBUFFERED there is no buffer between them."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)
