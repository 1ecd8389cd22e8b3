"""Write files that are either complete or absent, and never through a link that somebody else has placed there.

A file is written under a temporary name beside its destination, flushed to the disk and renamed. If the process is
killed at any moment, the previous version remains. The temporary file is new (`O_EXCL`, `O_NOFOLLOW`) and its name is
random, so no file or link that somebody has placed in a shared folder is opened. Its permissions are those that the
umask gives to any new file. A destination that is a symbolic link is replaced and not followed, so the file behind the
link is not changed.

A killed process may leave a temporary file. The next write to the same destination removes it, and so does
`remove_left_over` for a whole folder. A temporary file is locked while it is written, and the lock ends with its
process, so a file in use is never removed. Where the file system has no locks, its age decides.

This is our own code because the usual library for it, atomicwrites, is no longer maintained.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genlab.core import RunError

STALE_SECONDS = 60.0  # without locks: a younger temporary file may be in use
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It replaces `path` if the block succeeds, and is removed if it does not.

    Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = _begin(path)
    for entry in os.scandir(path.parent):
        if entry.name.startswith(begin) and len(entry.name) == len(begin) + len(".tmp") + 16:
            _remove_unused(entry)
    temporary, file = _new_file(path)
    try:
        yield temporary
        os.fsync(file)
        if not os.path.samestat(os.fstat(file), os.lstat(temporary)):
            raise RunError(f"{path} was not written: another process has replaced its temporary file")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
        os.close(file)


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in `folder` and the folders in it."""
    for place, _, _ in os.walk(folder):
        with suppress(OSError):  # another process may remove the folder
            for entry in os.scandir(place):
                _remove_unused(entry)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises ValueError for numbers that JSON cannot express (NaN, infinity).
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _begin(path: Path) -> str:
    """How the names of its temporary files begin. It is cut short, because a file name has at most 255 bytes."""
    return f".{path.name.encode()[:200].decode(errors='ignore')}."


def _new_file(path: Path) -> tuple[Path, int]:
    """A new temporary file for `path`, and its descriptor, which holds the lock."""
    while True:
        temporary = path.with_name(f"{_begin(path)}{secrets.token_hex(8)}.tmp")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(FileNotFoundError):
            if _lock(file) is not False and os.path.samestat(os.fstat(file), os.lstat(temporary)):
                return temporary, file
        os.close(file)  # another process took the new file for one that was left over, and has removed it


def _lock(file: int) -> bool | None:
    """Lock the file. False if another process has locked it; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_unused(entry: os.DirEntry[str]) -> None:
    """Remove the file if it is a temporary file of this module that no process uses."""
    if not TEMPORARY.fullmatch(entry.name):
        return
    with suppress(OSError):  # another process may remove the same file
        if not entry.is_file(follow_symlinks=False):
            return
        file = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            locked = _lock(file)
            if locked is None:
                locked = time.time() - os.fstat(file).st_mtime > STALE_SECONDS
            if locked:
                os.unlink(entry.path)
        finally:
            os.close(file)
