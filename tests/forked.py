"""Python processes that start with their imports done.

Tests of processes are about what the processes do. A fresh interpreter first spends seconds on importing torch,
Lightning and Hydra, and the suite starts more than a hundred. `Popen` starts a Python command as a fork of a *fork
server* instead: a process with a single thread that has imported them and does nothing else.

All else is as in a fresh interpreter: the parent (the caller adopts the fork, PR_SET_CHILD_SUBREAPER), arguments,
environment, `sys.path`, working folder, descriptors, signals, exit status. (The fork server of multiprocessing starts
functions, with another parent and no pipes.) Only variables that the interpreter reads when it starts, as
PYTHONIOENCODING and OMP_NUM_THREADS, have no effect. Tests of those, and of the imports themselves, ask for the fixture
`fresh` of conftest.py; all others have the fixture `forked`. On other systems than Linux all interpreters are fresh.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
# What runs of genlab import, some of it (torch._dynamo) only at the first step of an optimizer.
PRELOADED = (
    "pytest", "torch.distributed", "torch._dynamo", "torchvision", "pytorch_lightning", "hydra", "matplotlib.pyplot",
    "joblib", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "genlab.cli", "genlab.data",
    "genlab.nets", "genlab.verbs.train", "genlab.verbs.resume", "genlab.verbs.evaluate", "genlab.train.fit",
    "genlab.processes.training",
)  # fmt: skip
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
FRESH = subprocess.Popen

_control: list[socket.socket] = []  # the connection to this process's fork server: at most one
_lock = threading.Lock()


class Popen(subprocess.Popen):
    """A `subprocess.Popen` whose Python commands (-c, -m or a script) are forks of the fork server."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        words = [] if isinstance(args, (str, bytes, os.PathLike)) else [os.fspath(word) for word in args]
        python = words[:1] == [sys.executable] and (words[1] in ("-c", "-m") or words[1].endswith(".py"))
        if not python or rest[2] or not sys.platform.startswith("linux"):  # rest[2]: shell
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        pipes, new_session = rest[3:9], rest[14]
        standard = [end if end != -1 else number for number, end in enumerate((pipes[0], pipes[3], pipes[5]))]
        request = {
            "words": words[1:], "env": dict(os.environ if env is None else env), "cwd": os.fspath(cwd or os.getcwd()),
            "session": new_session, "parent": os.getpid(), "numbers": [0, 1, 2, *pass_fds],
            "mask": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "ignored": [int(n) for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN],
        }  # fmt: skip
        with _lock:
            control = _server()
            socket.send_fds(control, [json.dumps(request).encode()], [*standard, *pass_fds])
            self.pid = int(control.recv(100))
        self._child_created = True
        self._close_pipe_fds(*pipes)


def joblib_worker(command: list[str], descriptors: list[int], env: dict[str, str] | None = None) -> int:
    """The number of a process of joblib: in the place of its own fork_exec, whose caller waits for the process."""
    worker = Popen(command, pass_fds=descriptors, env={**os.environ, **(env or {})})
    worker.returncode = 0
    return worker.pid


def places() -> dict[str, Callable]:
    """What is to be replaced by what, as dotted names and functions."""
    return {"subprocess.Popen": Popen, "joblib.externals.loky.backend.fork_exec.fork_exec": joblib_worker}


def _server() -> socket.socket:
    """The connection to the fork server of this process, which is started at the first call."""
    if not _control:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [str(HERE), str(HERE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        FRESH(
            [sys.executable, "-c", f"import forked; forked.main({theirs.fileno()})"], pass_fds=[theirs.fileno()],
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": ""},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        _connect(ours)
    return _control[0]


def _connect(control: socket.socket) -> None:
    """Use the fork server at the other end, and become the parent of orphaned descendants, which its forks are."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    _control[:] = [control]


def main(descriptor: int) -> None:
    """The fork server; in a fork of it, the command that was asked for."""
    inherited = os.environ["PYTHONPATH"].split(os.pathsep)
    base = [path for path in sys.path if path and path not in inherited]
    for name in PRELOADED:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of a process with threads may inherit a lock for ever"
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the caller's state now need not be that of later callers
    for number in {*signal.valid_signals()} - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python itself ignores
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    gc.freeze()  # what is never looked at again stays shared between the forks
    control = socket.socket(fileno=descriptor)
    while True:
        request, descriptors = _serve(control)
        if "genlab.processes.rank" in request["words"]:
            break  # ranks start nobody
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            theirs.close()
            ours = socket.socket(fileno=fcntl.fcntl(ours.detach(), fcntl.F_DUPFD_CLOEXEC, 500))  # where no file will go
            break
        for descriptor in descriptors:  # this is the fork server of the fork
            os.close(descriptor)
        ours.close()
        control.close()
        control = theirs
    _become(request, descriptors, base, control)
    if "genlab.processes.rank" not in request["words"]:
        _connect(ours)
        for name, replacement in places().items():
            module, _, function = name.rpartition(".")
            setattr(importlib.import_module(module), function, replacement)
    try:
        _run(*request["words"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if not isinstance(stop.code, (int, type(None))):
            print(stop.code, file=sys.stderr)
    # As at the end of an interpreter, but for its last step: to take thousands of modules apart is half a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(kind: str, *words: str) -> None:
    """What `python kind words…` runs."""
    if kind == "-m":
        sys.argv = list(words)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = [kind, *words]
        sys.path[0] = str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


def _serve(control: socket.socket) -> tuple[dict, list[int]]:
    """Fork a process for every request, until the other end is closed. Returns in the forks."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 64)
        if not message:
            os._exit(0)
        child = os.fork()
        if not child:
            if os.fork():
                os._exit(0)  # which makes the fork an orphan, whom the caller adopts
            return json.loads(message), descriptors
        os.waitpid(child, 0)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: dict, descriptors: list[int], base: list[str], control: socket.socket) -> None:
    """Take over all that the caller has asked for, then tell it the number of this process."""
    deadline = time.monotonic() + 30
    while os.getppid() != request["parent"]:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.001)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*([] if os.environ.get("PYTHONSAFEPATH") else [""]), *own, *base]
    control.send(str(os.getpid()).encode())
    control.close()
    free = max(request["numbers"]) + 1  # first out of the way of the numbers that they shall have
    above = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, free) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(above, request["numbers"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
