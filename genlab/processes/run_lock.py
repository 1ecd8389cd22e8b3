"""Lock on a run folder: only one process, with the ranks it has started, may write in it.

The lock is a flock on the file .lock in the folder. The kernel releases it when its owner ends, also when it is killed.
Linux supports it over NFS, too. The file exists while the run does. The file of a killed run remains, but is not
locked.

The library filelock is not used: it leaves its file in the folder, ranks cannot inherit its descriptor, and
without flock it uses a lock that a killed process leaves behind.
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
# Errors of file systems without locks (some mounts of Lustre). There only the user can prevent two runs in one folder.
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

_held: list[int] = []


def lock_descriptors() -> tuple[int, ...]:
    """File descriptors of the locks that this process holds.

    A rank inherits them, so that the lock lasts as long as one of the processes, also if the parent is killed.
    """
    return tuple(_held)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on an existing run folder. Raises RequestError if another process holds it."""
    path = folder / NAME
    descriptor = _lock(path, folder)
    if descriptor is None:
        yield
        return
    _held.append(descriptor)
    try:
        yield
    finally:
        _held.remove(descriptor)
        path.unlink(missing_ok=True)  # before the lock is released; `_lock` checks that its file is still this one
        os.close(descriptor)


def _lock(path: Path, folder: Path) -> int | None:
    """A descriptor of the lock file, locked; None where the file system has no locks.

    Raises RequestError if it is taken.
    """
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
            if error.errno in UNSUPPORTED:
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
