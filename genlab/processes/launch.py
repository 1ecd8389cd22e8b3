"""Several processes, one per device: started here, or joined when torchrun or srun has started them.

The command line of the user is never run again. A job is a function of genlab named by `module:function` with JSON
arguments; each rank is `python -m genlab.processes.rank JOB ARGUMENTS`. So sweeps (-m) work, and no rank makes a
folder of its own. Ours starts the processes itself instead of through torchrun's agent, because a run that fails has one
sentence for its user and the agent adds a page; the rendezvous is torchrun's own (a store held by the parent).
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from genlab.core import Interrupted, RequestError, RunError
from genlab.processes.lifeline import Lifeline
from genlab.processes.place import LOCAL, Place, place
from genlab.system import signals
from genlab.system.failures import explained
from genlab.train import claim

DISTRIBUTED = ("train", "resume", "eval")  # verbs whose work is shared between ranks
ERRORS = {"RequestError": RequestError, "RunError": RunError, "Interrupted": Interrupted}

T = TypeVar("T")
_met: list[Lifeline] = []  # at most one


def here() -> Place:
    """Where this process stands. A task of srun that sees one GPU of its own counts as a machine of its own."""
    found = place(os.environ)
    if found.starter == "srun" and found.local_world > 1 == torch.cuda.device_count():
        return replace(found, local_rank=0, local_world=1)
    return found


def world() -> int:
    """Number of processes of the job this process is a rank of; 1 if it stands alone."""
    return here().world


def local_world() -> int:
    """How many of them are on this machine."""
    return here().local_world


def cores() -> int:
    """How many cores this process may use: those of its allocation, where it has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores(devices: int, accelerator: str) -> None:
    """RequestError if more CPU ranks are to be started here than there are cores; each holds the model and the data."""
    if accelerator != "cpu" or world() > 1 or devices <= cores() or os.environ.get("GENLAB_OVERSUBSCRIBE") == "1":
        return
    raise RequestError(
        f"trainer.devices={devices}: this process may use {cores()} core{'s' * (cores() != 1)}, and every rank on the "
        "CPU needs one (GENLAB_OVERSUBSCRIBE=1 starts them all the same)"
    )


def environment() -> Any:
    """Lightning's view of the ranks, in place of its guess at who has started them."""
    # Lightning takes seconds to import, and whoever only launches or evaluates can do without it.
    from pytorch_lightning.plugins.environments import LightningEnvironment

    from genlab.processes.ranks import Ranks

    return Ranks(here()) if world() > 1 else LightningEnvironment()


def together(verb: str, work: Callable[[], T]) -> T:
    """Do a verb's work; as a rank of torchrun or srun such that a failure of any rank ends all, with one sentence."""
    if world() == 1 or "GENLAB_PARENT" in os.environ:
        return work()
    if verb not in DISTRIBUTED:
        if here().rank:
            raise SystemExit(2)
        raise RequestError(f"genlab {verb} is one process: start it without torchrun, and with srun -n 1")
    line = meet()
    try:
        value = work()
    except BaseException as error:
        if line.failed(error):
            raise
        raise SystemExit(line.status) from error
    line.done()
    return value


def meet() -> Lifeline:
    """Connect to the other ranks, once."""
    if not _met:
        _met.append(Lifeline(here(), os.environ))
    return _met[0]


def join(accelerator: str) -> None:
    """Meet the other ranks; tensors on GPUs talk through NCCL, tensors on CPUs through gloo."""
    if world() == 1 or dist.is_initialized():
        return
    mine = here()
    if accelerator == "gpu":
        torch.cuda.set_device(mine.local_rank)
    backend = "cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo"
    store = dist.PrefixStore("genlab", meet().store) if mine.starter == "srun" else None
    dist.init_process_group(backend, store=store, rank=mine.rank, world_size=mine.world)


def is_zero() -> bool:
    """Whether this process is the one that writes and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_zero(function: Callable[[], Any]) -> Any:
    """Call on rank zero only; every rank gets the value, or the RequestError or RunError, that came of it."""
    if not dist.is_initialized():
        return function()
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [(function(), None)]
        except (RequestError, RunError) as error:
            answer = [(None, error)]
    dist.broadcast_object_list(answer, src=0)
    value, failure = answer[0]
    if failure is not None:
        raise failure
    return value


def ranks(n: int, job: str, **arguments: Any) -> None:
    """Run `job` ("genlab.verbs.train:work") with JSON-able arguments in n local processes and wait for them.

    A RequestError or RunError of a rank is raised here. If one rank fails the others are ended; signals are passed on
    to all ranks, which then stop in their own way.
    """
    store = dist.TCPStore(LOCAL, 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": LOCAL, "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the parent holds the store: no rank has to find a free port
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or max(1, cores() // n),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "GENLAB_PARENT": os.getpid(),
        "PYTHONSAFEPATH": 1,  # -m would put the current folder, which may be a stranger's, before Python's own modules
    }  # fmt: skip
    command = [sys.executable, "-m", "genlab.processes.rank", job, json.dumps(arguments)]
    started: list[subprocess.Popen] = []
    try:
        for rank in range(n):
            own = {**common, "RANK": rank, "LOCAL_RANK": rank}
            env = {**os.environ, **{key: str(value) for key, value in own.items()}}
            # A session of its own: Ctrl-C in a terminal reaches the parent alone, which passes it on once.
            # It listens to signals once it can handle them, and keeps this process's lock on the run's folder.
            with signals.held():
                started.append(subprocess.Popen(command, env=env, start_new_session=True, pass_fds=claim.descriptors()))
        with _passing_on_signals(started):
            while any(p.poll() is None for p in started) and not any(p.poll() for p in started):
                time.sleep(0.05)
    finally:
        ended = {rank: process.poll() for rank, process in enumerate(started)}
        for process in started:
            process.kill()  # those that wait for a rank that is gone
            process.wait()
    killed = next((rank for rank, status in ended.items() if status and status < 0), None)
    if killed is not None:  # out of memory, most often; what the others then said is only the echo
        raise RunError(f"rank {killed} of {n} was killed by {signal.Signals(-started[killed].returncode).name}")
    if store.check(["error"]):
        kind, sentence, trace = json.loads(store.get("error"))
        print(trace, end="", file=sys.stderr)
        raise Interrupted(sentence, signals.asked) if kind == "Interrupted" else ERRORS[kind](sentence)
    if any(ended.values()):
        raise RunError(f"a rank stopped with status {max(filter(None, ended.values()))}")


def report(error: Exception) -> None:
    """From a rank to the parent: why it failed. The first word counts; the other ranks fail because this one did."""
    if os.getppid() != int(os.environ["GENLAB_PARENT"]):
        return  # nobody is left to tell
    store = dist.TCPStore(LOCAL, int(os.environ["MASTER_PORT"]), is_master=False)
    if store.add("failures", 1) > 1:
        return
    known = explained(error)  # a full disk or too little memory is as well known on a rank as anywhere
    kind = next((name for name in ("RequestError", "Interrupted") if isinstance(known, ERRORS[name])), "RunError")
    sentence = f"{type(error).__name__}: {error}" if known is None else str(known)
    trace = "" if known and not os.environ.get("GENLAB_DEBUG") else "".join(traceback.format_exception(error))
    store.set("error", json.dumps([kind, sentence, trace]))


def stop_with_parent() -> None:
    """Ask this rank to save and stop, as SIGTERM does, when the process that started it is gone."""
    parent = int(os.environ.get("GENLAB_PARENT", 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _passing_on_signals(processes: list[subprocess.Popen]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have handlers
        return

    def pass_on(number: int, frame: object) -> None:
        signals.note(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    heard = [number for number in signals.ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    if signals.asked:  # while they were being started
        pass_on(signals.asked, None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
