"""Who may write in a run folder: one process and the ranks it has started.

The lock is a flock on the file .lock in the folder. The kernel releases it when its owner ends, in whatever way; Linux
supports it over NFS too. The file exists while the run does, and a file that a killed run has left locks nothing. (The
library filelock was considered: it leaves its file in the folder, and where flock is missing, the lock that it uses
instead outlives a killed process.)
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genlab.core import RequestError

NAME = ".lock"
# Errors of file systems without locks (some mounts of Lustre): there the user has to take care.
WITHOUT = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

_held: list[int] = []


def descriptors() -> tuple[int, ...]:
    """File descriptors of the locks that this process holds. A rank inherits them, and keeps the lock if its parent is
    killed.
    """
    return tuple(_held)


def new_folder(folder: Path, or_next: bool) -> Path:
    """Make `folder` and return it. If it exists, return it as it is or, with `or_next`, make `folder`-2, -3, … instead.

    Of many processes that make the same folder, exactly one succeeds.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    number, name = 1, folder
    while True:
        try:
            name.mkdir()
            return name
        except FileExistsError:
            if not or_next:
                return name
            number += 1
            name = folder.with_name(f"{folder.name}-{number}")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the lock on an existing run folder. RequestError if another process holds it."""
    path = folder / NAME
    descriptor = _locked(path, folder)
    if descriptor is None:
        yield
        return
    _held.append(descriptor)
    try:
        yield
    finally:
        _held.remove(descriptor)
        path.unlink(missing_ok=True)  # while the lock is ours: who gets it next checks the file
        os.close(descriptor)


def _locked(path: Path, folder: Path) -> int | None:
    """A descriptor of the lock file, locked; None where there are no locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise RequestError(f"{folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # its owner has ended in the meantime and removed the file
        except OSError as error:
            if error.errno in WITHOUT:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                return None
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                raise RequestError(f"{folder} cannot be locked: {error.strerror}") from error
            os.close(descriptor)
            raise RequestError(
                f"{folder} is in use: another process trains there; wait for it or stop it, then go on with "
                f"`genlab resume run={folder}`"
            ) from error
        os.close(descriptor)
