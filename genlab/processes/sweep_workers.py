"""The processes of a sweep: how they are stopped, and which GPUs they use.

Training has its own signal handlers, which save. The sweep must notice a signal as well, whichever handler is set. So
it reads the file descriptor to which Python writes the number of every signal (`signal.set_wakeup_fd`).

Workers of joblib are asked to stop through a file in the sweep's folder, because joblib kills all workers when one of
them ends by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from genlab.system.signals import ENDING, Stopped
from genlab.train.plan import Plan

STOP = ".stopping"
_initialised: list[bool] = []  # not empty in a worker that has begun
_gpu_lock: list[Any] = []  # the lock on this worker's GPUs, kept until the worker ends


@contextmanager
def signal_listener(on_first: Callable[[], object] | None = None) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the first signal received since, 0 if none.

    A signal that nothing inside the block handles raises `Stopped`. With `on_first`, it calls `on_first` instead, and
    raises `Stopped` only when the same signal comes a second time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # only the main thread can have handlers
        return
    received: list[int] = []
    handled: set[int] = set()
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)

    def first_signal() -> int:
        with contextlib.suppress(BlockingIOError):
            received.extend(number for number in os.read(reading, 4096) if number in ENDING)
        return received[0] if received else 0

    def handler(number: int, frame: object) -> None:
        if on_first is None or number in handled:
            raise Stopped(number)
        handled.add(number)
        on_first()

    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {n: signal.signal(n, handler) for n in ENDING if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield first_signal
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
        signal.set_wakeup_fd(outer, warn_on_full_buffer=False)
        if outer != -1 and first_signal():  # pass it on to the listener around this one
            with contextlib.suppress(OSError):
                os.write(outer, bytes([first_signal()]))
        os.close(reading)
        os.close(writing)


def request_stop(folder: Path) -> None:
    """Ask the workers of the sweep in `folder` to save and stop, and to begin no other job."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP).touch()


def stop_requested(folder: Path) -> bool:
    """True once the workers of the sweep in `folder` have been asked to stop."""
    return (folder / STOP).exists()


def initialise_worker(folder: Path) -> None:
    """In a worker of joblib, at its first job: leave Ctrl-C to the parent process, and end when the parent ends."""
    if _initialised:
        return
    _initialised.append(True)
    parent = os.getppid()
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)

    def watch() -> None:
        while os.getppid() == parent and not stop_requested(folder):
            time.sleep(0.2)
        if not stop_requested(folder):
            request_stop(folder)  # the parent was killed, which other workers may not have noticed
        os.kill(os.getpid(), signal.SIGTERM)

    # Between two jobs nothing can be lost. The worker must stay alive, or joblib ends the others.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    threading.Thread(target=watch, daemon=True).start()


def reserve_gpus(trainer: Mapping[str, Any], number: int) -> None:
    """Reserve GPUs for this worker that no other worker uses, before CUDA is used. If there are too few, they are
    shared.

    `number`: the number of the worker's first job, which decides the GPUs that it shares.
    """
    plan = Plan.of(trainer)
    if plan.accelerator != "gpu" or _gpu_lock:
        return
    groups = gpu_groups(visible_gpus(), plan.devices)
    for gpus in groups:
        # A lock is needed: the numbers of jobs do not tell workers apart, because one worker may do several jobs.
        name = f"genlab-{os.getuid()}-{os.getppid()}-gpu-{gpus.replace('/', '_')}.lock"
        file = open(Path(tempfile.gettempdir(), name), "w")  # noqa: SIM115 (kept open)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        break
    else:
        gpus, file = groups[number % len(groups)], None
    _gpu_lock.append(file)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]


def gpu_groups(gpus: list[str], each: int) -> list[str]:
    """Groups of `each` GPUs, in CUDA's notation; GPUs that do not fill a group are not used."""
    return [",".join(gpus[i : i + each]) for i in range(0, len(gpus) - each + 1, each)]


def exit_now(status: int) -> None:
    """End this process at once, with `status`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
