"""What a signal that ends a process means here: finish the step, save, stop, and say how to go on.

Batch systems warn with the signal that the user chose (SLURM: `--signal=USR1@90`; submitit: USR2), then send TERM; a
terminal that closes sends HUP, a limit on CPU time XCPU, Ctrl-C INT. All are alike. What the caller ignores stays
ignored, so `nohup` works. SIGQUIT is left alone: it is how a user ends a process that does not listen.

A process is *patient* while a run stands in its folder: a signal is noted in `asked`, and training stops where it can
save. Elsewhere nothing would be lost, and `Stopped` is raised at once; a second Ctrl-C always does.

The standard library alone is imported here: the handlers are in place before torch is, which takes seconds.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)

asked = 0  # the signal that asked a patient process to stop, 0 if none did
_patient = False


class Stopped(BaseException):
    """Raised where a signal ends the work at once. No Exception, and not KeyboardInterrupt, which Lightning turns into
    an exit of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {name(number)}")
        self.number = number


def name(number: int) -> str:
    """SIGTERM, or Ctrl-C as users know SIGINT."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def install() -> dict[int, Any]:
    """Take over every signal in `ENDING` that is not ignored; what handled them before. Main thread only, else none."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    taken = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _receive) for number in taken}


def note(number: int) -> None:
    """As if this process had been sent the signal while it was patient."""
    global asked
    asked = number


@contextmanager
def patiently() -> Iterator[None]:
    """A signal is noted in `asked` instead of ending the work."""
    global asked, _patient
    outer, before = _patient, install()
    _patient = True
    try:
        yield
    finally:
        _patient = outer
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if not outer:
            asked = 0


@contextmanager
def impatiently() -> Iterator[None]:
    """Inside `patiently`: a part that a signal may end at once, also one that came before."""
    global _patient
    outer = _patient
    _patient = False
    try:
        if asked:
            raise Stopped(asked)
        yield
    finally:
        _patient = outer


@contextmanager
def held() -> Iterator[None]:
    """Signals wait until the block ends, and in processes that are started in it until they `release` them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """In a process started while signals were `held`: it is ready for them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _receive(number: int, frame: FrameType | None) -> None:
    global asked
    again = asked == number == signal.SIGINT
    if not _patient or again:
        raise Stopped(number)
    asked = number
