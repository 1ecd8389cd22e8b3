"""Turn an error into one sentence, and tell an expected failure from a bug.

RequestError and RunError carry a sentence already, even if a library has wrapped them. A full or read-only disk, a file
that may not be opened and too little memory are not bugs: here they become a RunError. Every other error is unexpected.
A sentence is one line of at most `LONGEST` characters.
"""

from __future__ import annotations

import errno
import os

import torch

from genlab.core import RequestError, RunError

LONGEST = 400
# What an operating system refuses; ENOENT, because a file may be removed while the run is working.
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EFBIG, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ESTALE,
    errno.ETIMEDOUT, errno.ENODEV, errno.ENOENT,
}  # fmt: skip
NO_MEMORY = ("can't allocate memory", "not enough memory", "Unable to allocate", "std::bad_alloc", "out of memory")
TOO_LARGE = ("Storage size calculation overflowed", "numel: integer multiplication overflow", "exceeds the maximum")


def explained(error: BaseException) -> RequestError | RunError | None:
    """The expected failure that an error is, was caused by or stands for; None for a bug."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for each in chain:
        if isinstance(each, (RequestError, RunError)):
            return each
    for each in chain:
        found = _of_the_machine(each)
        if found is not None:
            return found
    return None


def sentence(error: BaseException) -> str:
    """What the user is told: one line."""
    known = explained(error)
    if known is not None:
        return shortened(str(known))
    return shortened(f"unexpected {type(error).__name__}: {str(error) or 'no message'} (GENLAB_DEBUG=1 shows where)")


def shortened(text: str) -> str:
    """One line of at most `LONGEST` printable characters. A longer text is cut in the middle, because its end says what
    would be right.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= LONGEST:
        return line
    end = LONGEST // 3
    return f"{line[: LONGEST - end - 3]} … {line[-end:]}"


def _of_the_machine(error: BaseException) -> RequestError | RunError | None:
    """What a refusal of the operating system or too little memory means to the user; None for any other error."""
    text = str(error)
    if isinstance(error, RuntimeError) and "home directory" in text:  # pathlib's word for ~somebody
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
