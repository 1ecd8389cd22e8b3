"""Jobs for the ranks of test_launch.py, in a file that does not import Lightning, so that ranks start faster."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from genlab.core import Interrupted, RequestError, RunError
from genlab.processes import group
from genlab.system import signals


def write_rank(folder):
    """Join the other ranks, then write their number and a sum over them to a file."""
    group.join("cpu")
    total = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(total)
    Path(folder, str(dist.get_rank())).write_text(f"{group.world_size()} {total.item():.0f} {group.is_rank_zero()}")


def fail(how, folder):
    """Rank 1 fails while rank 0 waits for it."""
    group.join("cpu")
    if dist.get_rank() == 1:
        if how == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "disk":
            raise OSError(errno.ENOSPC, "because of disk")
        raise {"request": RequestError, "run": RunError, "bug": ZeroDivisionError}[how](f"because of {how}")
    Path(folder, "pid").write_text(str(os.getpid()))
    dist.barrier()


def stop_when_asked():
    """Wait for a signal, a minute at most."""
    deadline = time.monotonic() + 60
    while not signals.received and time.monotonic() < deadline:
        time.sleep(0.01)
    raise Interrupted(f"stopped by {signals.name(signals.received)}" if signals.received else "nobody asked")


@signals.impatiently()
def stop_at_once():
    """A job with nothing to save."""
    time.sleep(60)


def fail_on_zero():
    """Raise an error on rank zero."""
    group.join("cpu")
    group.from_rank_zero(lambda: (_ for _ in ()).throw(RequestError("zero says no")))
