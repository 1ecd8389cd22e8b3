"""Turn an error into one sentence, and distinguish expected failures from bugs.

RequestError and RunError have a sentence for the user already, even if a library has wrapped them in an error of its
own. A full or read-only disk, a file that may not be opened and too little memory are not bugs: here they become a
RunError. Every other error is unexpected. A sentence is one line of at most `LONGEST` characters.
"""

from __future__ import annotations

import errno
import os

import torch

from genlab.core import RequestError, RunError

LONGEST = 400
# Errors by which an operating system refuses something. ENOENT is one: a file may be removed while a run uses it.
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EFBIG, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ESTALE,
    errno.ETIMEDOUT, errno.ENODEV, errno.ENOENT,
}  # fmt: skip
NO_MEMORY = ("can't allocate memory", "not enough memory", "Unable to allocate", "std::bad_alloc", "out of memory")
TOO_LARGE = ("Storage size calculation overflowed", "numel: integer multiplication overflow", "exceeds the maximum")


def explained(error: BaseException) -> RequestError | RunError | None:
    """The expected failure behind an error: itself, one of its causes, or a failure of the machine. None for a bug."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for each in chain:
        if isinstance(each, (RequestError, RunError)):
            return each
    for each in chain:
        failure = _machine_failure(each)
        if failure is not None:
            return failure
    return None


def sentence(error: BaseException) -> str:
    """The message for the user: one line."""
    failure = explained(error)
    if failure is not None:
        return shortened(str(failure))
    return shortened(f"unexpected {type(error).__name__}: {str(error) or 'no message'} (GENLAB_DEBUG=1 shows where)")


def shortened(text: str) -> str:
    """The text as one line of at most `LONGEST` printable characters.

    A longer text is cut in the middle, because its end often says what would be right.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= LONGEST:
        return line
    end = LONGEST // 3
    return f"{line[: LONGEST - end - 3]} … {line[-end:]}"


def _machine_failure(error: BaseException) -> RequestError | RunError | None:
    """The failure for the user if the operating system refused something or memory ran out. None for other errors."""
    text = str(error)
    if isinstance(error, RuntimeError) and "home directory" in text:  # raised by pathlib for ~somebody
        return RequestError("a path in the request begins with ~ and a name, and this machine has no user of that name")
    if isinstance(error, OSError) and error.errno in REFUSALS:
        where = f"{error.filename}: " if error.filename else ""
        return RunError(f"{where}{os.strerror(error.errno)}{' (the disk is full)' * (error.errno == errno.ENOSPC)}")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)
    ):
        return RunError(
            "there is not enough memory for this: ask for fewer or smaller images at once, or a smaller model"
        )
    if isinstance(error, (RuntimeError, OverflowError)) and any(words in text for words in TOO_LARGE):
        return RunError("this asks for more numbers than memory can address: a size in the request is far too large")
    return None
