"""Start the ranks of one job on this machine, one process per device, and wait for them.

The ranks do not repeat the user's command line. A job is a function of genlab, named `module:function`, with JSON
arguments; each rank is `python -m genlab.processes.rank JOB ARGUMENTS`. So sweeps (-m) work, and no rank makes its own
folder.

The processes are started here and not by torchrun's agent, because the agent adds a page of output to the one sentence
of a failed run. The ranks find each other as with torchrun: through a key-value store of the parent process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from genlab.core import Interrupted, RequestError, RunError
from genlab.processes.group import world_size
from genlab.processes.rank_info import LOCAL
from genlab.processes.run_lock import lock_descriptors
from genlab.system import signals
from genlab.system.failures import explained

ERRORS = {"RequestError": RequestError, "RunError": RunError, "Interrupted": Interrupted}


def cores() -> int:
    """Number of CPU cores that this process may use, for example those of its SLURM allocation."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores(devices: int, accelerator: str) -> None:
    """Raise RequestError for more CPU ranks than cores: each rank has a copy of the model and of the data."""
    if accelerator != "cpu" or world_size() > 1 or devices <= cores() or os.environ.get("GENLAB_OVERSUBSCRIBE") == "1":
        return
    raise RequestError(
        f"trainer.devices={devices}: this process may use {cores()} core{'s' * (cores() != 1)}, and every rank on the "
        "CPU needs one (GENLAB_OVERSUBSCRIBE=1 starts them all the same)"
    )


def ranks(n: int, job: str, **arguments: Any) -> None:
    """Run `job` ("genlab.processes.training:work") with JSON-able arguments in n local processes and wait for them.

    A RequestError, RunError or Interrupted of a rank is raised here. If one rank fails, the others are ended. Signals
    are passed on to all ranks, each of which then saves and stops, or stops at once.
    """
    store = dist.TCPStore(LOCAL, 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": LOCAL, "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the parent has the store, so no rank needs a free port
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or max(1, cores() // n),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "GENLAB_PARENT": os.getpid(),
        "PYTHONSAFEPATH": 1,  # otherwise -m imports from the current folder first, which may hold untrusted files
    }  # fmt: skip
    command = [sys.executable, "-m", "genlab.processes.rank", job, json.dumps(arguments)]
    started: list[subprocess.Popen] = []
    try:
        for rank in range(n):
            variables = {**common, "RANK": rank, "LOCAL_RANK": rank}
            env = {**os.environ, **{key: str(value) for key, value in variables.items()}}
            # In a session of its own: Ctrl-C in a terminal reaches the parent alone, which passes it on once.
            # The rank unblocks signals once it can handle them. It inherits the lock on the run's folder.
            with signals.held():
                locks = lock_descriptors()
                started.append(subprocess.Popen(command, env=env, start_new_session=True, pass_fds=locks))
        with _passing_on_signals(started):
            while any(p.poll() is None for p in started) and not any(p.poll() for p in started):
                time.sleep(0.05)
    finally:
        ended = {rank: process.poll() for rank, process in enumerate(started)}
        for process in started:
            process.kill()  # the remaining ranks would wait for the one that has ended
            process.wait()
    killed = next((rank for rank, status in ended.items() if status and status < 0), None)
    if killed is not None:  # most often for lack of memory; then the other ranks fail as well
        raise RunError(f"rank {killed} of {n} was killed by {signal.Signals(-started[killed].returncode).name}")
    if store.check(["error"]):
        kind, sentence, trace = json.loads(store.get("error"))
        print(trace, end="", file=sys.stderr)
        raise Interrupted(sentence, signals.received) if kind == "Interrupted" else ERRORS[kind](sentence)
    if any(ended.values()):
        raise RunError(f"a rank stopped with status {max(filter(None, ended.values()))}")


def report_failure(error: Exception) -> None:
    """Report to the parent why this rank failed. Only the first report counts: other ranks fail as a consequence."""
    if os.getppid() != int(os.environ["GENLAB_PARENT"]):
        return  # the parent has ended
    store = dist.TCPStore(LOCAL, int(os.environ["MASTER_PORT"]), is_master=False)
    if store.add("failures", 1) > 1:
        return
    failure = explained(error)  # a full disk, for example, has its own sentence
    kind = next((name for name in ("RequestError", "Interrupted") if isinstance(failure, ERRORS[name])), "RunError")
    sentence = f"{type(error).__name__}: {error}" if failure is None else str(failure)
    trace = "" if failure and not os.environ.get("GENLAB_DEBUG") else "".join(traceback.format_exception(error))
    store.set("error", json.dumps([kind, sentence, trace]))


def stop_with_parent() -> None:
    """Send SIGTERM to this rank once its parent process has ended. The rank then saves and stops."""
    parent = int(os.environ.get("GENLAB_PARENT", 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _passing_on_signals(processes: list[subprocess.Popen]) -> Iterator[None]:
    """Pass every signal on to the processes, and note it in this process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have handlers
        return

    def pass_on(number: int, frame: object) -> None:
        signals.note(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    handled = [number for number in signals.ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in handled}
    if signals.received:  # a signal came while the processes were being started
        pass_on(signals.received, None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
