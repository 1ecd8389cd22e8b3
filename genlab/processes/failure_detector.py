"""A connection from rank zero to every other rank, for as long as they work together.

torchrun and srun start the ranks, but do not tell the others when one fails. These then wait: gloo for half an hour,
NCCL for ten minutes. Here a rank that fails sends a message, and a rank that is killed is noticed at once, because the
operating system closes its connection. Rank zero prints one sentence for all, and every rank ends. The others find rank
zero by trying the ports of `place.ports`, so no file is written and no two steps can meet.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from genlab.core import RequestError, RunError
from genlab.processes.place import Place, ports

MEET = 600.0  # seconds until all ranks must have connected: imports from a slow disk take minutes
GRACE = 10.0  # seconds that a rank has to end by itself after another has failed
ECHO = 2.0  # seconds to wait before an unexpected error is reported: another rank's failure may have caused it


class Lifeline:
    """One on every rank. The constructor returns when the rank is connected; on rank zero, when all are."""

    def __init__(self, here: Place, env: Mapping[str, str], patience: float = MEET) -> None:
        self.here = here
        self.status: int | None = None  # the exit status of this rank, once the job has failed
        self.over = threading.Event()  # the failure has been reported
        self._lock = threading.Lock()
        self._lines: dict[int, Any] = {}  # by rank; on all other ranks only rank zero's
        where = list(ports(here.key, env.get("MASTER_PORT") if here.starter == "srun" else None))
        deadline = time.monotonic() + patience
        self.store = self._wait_for_others(where, deadline) if here.rank == 0 else self._find_zero(where, deadline)
        threading.Thread(target=self._listen, daemon=True).start()

    def failed(self, error: BaseException) -> bool:
        """Tell all ranks that this one has failed. True if this rank must print why. Exit with `status` afterwards."""
        expected = isinstance(error, (RequestError, RunError))
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "number", 0)
        status = 128 + number if number else 2 if isinstance(error, RequestError) else 1
        sentence = " ".join(str(error).split()) if expected else f"unexpected {type(error).__name__}: {error}"
        if self.here.rank == 0:
            if not expected:
                self.over.wait(ECHO)
            first = self._end(status, None)
        else:
            self._send(0, {"failed": sentence, "status": status, "expected": expected})
            self.over.wait(GRACE)
            first = False
        self.status = self.status or status
        atexit.register(_leave, self.status)
        return first

    def done(self) -> None:
        """Tell the others that the work is done, so that the end of this rank is not taken for a failure."""
        for rank in self._lines:
            self._send(rank, {"done": True})
        atexit.register(_leave, 0)

    def _end(self, status: int, sentence: str | None) -> bool:
        """On rank zero: only the first failure counts. It is printed at once: torchrun is about to end this process."""
        with self._lock:
            if self.status is not None:
                return False
            self.status = status
        if sentence:
            print(f"genlab: {sentence}", file=sys.stderr, flush=True)
        for rank in list(self._lines):
            self._send(rank, {"end": status})
        self.over.set()
        return True

    def _listen(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for rank, line in self._lines.items():
                waiting.register(line, selectors.EVENT_READ, rank)
            while waiting.get_map() and not self.over.is_set():
                for key, _ in waiting.select():
                    if self._heard(key.data, key.fileobj):
                        waiting.unregister(key.fileobj)
        if self.over.is_set():
            time.sleep(GRACE)
            _leave(self.status or 1)

    def _heard(self, rank: int, line: Any) -> bool:
        """Handle a message of a rank, or the end of its connection; True if no more will come."""
        message = _read(line)
        if "done" in message:
            return True
        if "end" in message:
            self.status = message["end"]
            self.over.set()
        elif self.here.rank == 0:
            sentence = message.get("failed") or self._gone(rank)
            if message and not message["expected"]:  # most often caused by another rank: give that one time to report
                threading.Timer(ECHO / 2, self._end, (message["status"], sentence)).start()
            else:
                self._end(message.get("status", 1), sentence)
        else:
            self.status = 1
            if self.here.rank == 1:
                print(f"genlab: {self._gone(0)}", file=sys.stderr, flush=True)
            self.over.set()
        return True

    def _gone(self, rank: int) -> str:
        return f"rank {rank} of {self.here.world} is gone: it was killed, most often for want of memory"

    def _send(self, rank: int, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody is left to tell
            self._lines[rank].sendall(json.dumps(message).encode() + b"\n")

    def _wait_for_others(self, where: list[int], deadline: float) -> Any:
        from torch.distributed import TCPStore

        listener = _listen_at(where)
        store = TCPStore(self.here.address, 0, is_master=True, wait_for_workers=False)
        with listener:
            while len(self._lines) < self.here.world - 1:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    line, _ = listener.accept()
                except TimeoutError:
                    missing = sorted(set(range(1, self.here.world)) - set(self._lines))
                    raise RunError(
                        f"{len(self._lines) + 1} of {self.here.world} processes have met, and rank {missing[0]} has "
                        "not come: see what it has said, and whether the machines reach one another"
                    ) from None
                line.settimeout(5)
                hello = _read(line)
                if hello.get("key") != self.here.key:
                    line.close()  # a rank of another step, or a stranger
                    continue
                self._lines[hello["rank"]] = line
                self._send(hello["rank"], {"store": store.port})
                _keep(line)
        return store

    def _find_zero(self, where: list[int], deadline: float) -> Any:
        from torch.distributed import TCPStore

        while time.monotonic() < deadline:
            for port in where:
                with contextlib.suppress(OSError):
                    line = socket.create_connection((self.here.address, port), timeout=5)
                    self._lines[0] = line
                    self._send(0, {"key": self.here.key, "rank": self.here.rank})
                    answer = _read(line)
                    if "store" in answer:
                        _keep(line)
                        return TCPStore(self.here.address, answer["store"], is_master=False)
                    line.close()
            time.sleep(0.1)
        raise RunError(
            f"rank {self.here.rank} of {self.here.world} has not found rank 0 at {self.here.address}: see what that "
            "one has said, and whether the machines reach one another"
        )


def _listen_at(where: list[int]) -> socket.socket:
    for port in where:
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), backlog=1024)
    raise RunError(f"none of the ports {', '.join(map(str, where))} is free for the ranks to meet at")


def _keep(line: socket.socket) -> None:
    """Lift the time limit. Keep-alive messages notice after some minutes that a machine has lost its power."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)


def _read(line: socket.socket) -> dict[str, Any]:
    """The next message; {} if the other end is closed or sends something else."""
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < 100_000:
            piece = line.recv(1)
            if not piece:
                return {}
            text += piece
        message = json.loads(text)
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}


def _leave(status: int) -> None:
    """End without the destructors of a process group, which hang or abort when other ranks are gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
