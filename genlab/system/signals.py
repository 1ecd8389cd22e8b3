"""Signals that end a process. In training they mean: finish the step, save, stop, and tell the user how to resume.

Batch systems warn with a signal that the user chose (SLURM: `--signal=USR1@90`; submitit: USR2) and then send TERM. A
terminal that closes sends HUP, a limit on CPU time sends XCPU, and Ctrl-C sends INT. All are treated alike. A signal
that the caller ignores stays ignored, so `nohup` works. SIGQUIT is not handled, so that a user can end a process that
does not respond.

A process is *patient* while it works in a run folder. Then a signal is only noted in `received`, and training stops at
the next point where it can save. Elsewhere nothing would be lost, so `Stopped` is raised at once. A second Ctrl-C
always raises it at once.

Only the standard library is imported here, so that the handlers are installed before torch is imported, which takes
seconds.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)

received = 0  # the signal that a patient process has received; 0 if none
_patient = False


class Stopped(BaseException):
    """A signal ends the work at once.

    It is not an Exception, because other code may catch those. It is not a KeyboardInterrupt, because Lightning turns
    those into an exit of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {name(number)}")
        self.number = number


def name(number: int) -> str:
    """The name of a signal, like SIGTERM. SIGINT is called Ctrl-C, as users know it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def install() -> dict[int, Any]:
    """Handle every signal in `ENDING` that is not ignored. Returns the previous handlers.

    Outside the main thread, where Python allows no handlers, nothing is installed and {} is returned.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    not_ignored = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _receive) for number in not_ignored}


def note(number: int) -> None:
    """Act as if this process had received the signal while it was patient."""
    global received
    received = number


@contextmanager
def patiently() -> Iterator[None]:
    """Inside the block, a signal is noted in `received` and does not end the work."""
    global received, _patient
    outer, before = _patient, install()
    _patient = True
    try:
        yield
    finally:
        _patient = outer
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if not outer:
            received = 0


@contextmanager
def impatiently() -> Iterator[None]:
    """Inside `patiently`: a block that a signal may end at once, also a signal that came before the block."""
    global _patient
    outer = _patient
    _patient = False
    try:
        if received:
            raise Stopped(received)
        yield
    finally:
        _patient = outer


@contextmanager
def held() -> Iterator[None]:
    """Signals wait until the block ends. In a process started inside the block, they wait until it calls `release`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Let signals through again. A process that was started while signals were `held` calls this once it is ready."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _receive(number: int, frame: FrameType | None) -> None:
    global received
    repeated = received == number == signal.SIGINT
    if not _patient or repeated:
        raise Stopped(number)
    received = number
