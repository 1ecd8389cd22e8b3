"""Failure detector: a connection from rank zero to every other rank, for as long as they work together.

torchrun and srun start the ranks, but when one rank fails, the others are not notified. They wait: gloo for half an
hour, NCCL for ten minutes. Here a rank that fails sends a message. A rank that is killed is noticed at once, because
the operating system closes its connection. Rank zero prints one sentence for all ranks, and every rank ends.

The ranks find one another without torch's rendezvous, which needs a free port that all ranks know beforehand: rank
zero listens on one of the ports of `rank_info.ports`, and the others try them. So no file is written, and the ranks of
two steps on one machine cannot be mixed up.
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

from torch.distributed import TCPStore

from genlab.core import RequestError, RunError
from genlab.processes.rank_info import RankInfo, ports

CONNECT_SECONDS = 600.0  # seconds until all ranks must have connected: imports from a slow disk take minutes
ANSWER_SECONDS = 5.0  # after which a connection that sends nothing is another program's
GRACE_SECONDS = 10.0  # time for a rank to end by itself after another has failed
DELAY_SECONDS = 2.0  # before an unexpected error is reported, because another rank's failure may have caused it


class FailureDetector:
    """There is one on every rank. Its constructor returns when the rank is connected; on rank zero, when all are.

    `store` is a key-value store that all ranks share.
    """

    def __init__(self, info: RankInfo, env: Mapping[str, str], timeout: float = CONNECT_SECONDS) -> None:
        self.info = info
        self.status: int | None = None  # the exit status of this rank, once the job has failed
        self.over = threading.Event()  # set once a failure has been reported
        self._lock = threading.Lock()
        self._connections: dict[int, Any] = {}  # sockets by rank; on all other ranks only rank zero's
        candidates = list(ports(info.key, env.get("MASTER_PORT") if info.starter == "srun" else None))
        deadline = time.monotonic() + timeout
        connect = self._wait_for_others if info.rank == 0 else self._find_rank_zero
        self.store: TCPStore = connect(candidates, deadline)
        threading.Thread(target=self._listen, daemon=True).start()

    def report_failure(self, error: BaseException) -> bool:
        """Report to all ranks that this one has failed. Returns True if this rank must print the reason.

        The caller must then exit with `status`.
        """
        expected = isinstance(error, (RequestError, RunError))
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "number", 0)
        status = 128 + number if number else 2 if isinstance(error, RequestError) else 1
        sentence = " ".join(str(error).split()) if expected else f"unexpected {type(error).__name__}: {error}"
        if self.info.rank == 0:
            if not expected:
                self.over.wait(DELAY_SECONDS)
            first = self._end(status, None)
        else:
            self._send(0, {"failed": sentence, "status": status, "expected": expected})
            self.over.wait(GRACE_SECONDS)
            first = False
        self.status = self.status or status
        atexit.register(_exit_now, self.status)
        return first

    def report_done(self) -> None:
        """Report to the others that the work is done, so that they do not take the end of this rank for a failure."""
        for rank in self._connections:
            self._send(rank, {"done": True})
        atexit.register(_exit_now, 0)

    def _end(self, status: int, sentence: str | None) -> bool:
        """On rank zero: end all ranks. Returns False if they are ending already: only the first failure counts.

        The sentence is printed at once, because torchrun is about to end this process.
        """
        with self._lock:
            if self.status is not None:
                return False
            self.status = status
        if sentence:
            print(f"genlab: {sentence}", file=sys.stderr, flush=True)
        for rank in list(self._connections):
            self._send(rank, {"end": status})
        self.over.set()
        return True

    def _listen(self) -> None:
        """In a thread: handle messages until the job is over, then end this process if it does not end by itself."""
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and not self.over.is_set():
                for key, _ in selector.select():
                    self._handle(key.data, key.fileobj)
                    selector.unregister(key.fileobj)  # a rank sends one message at most
        if self.over.is_set():
            time.sleep(GRACE_SECONDS)
            _exit_now(self.status or 1)

    def _handle(self, rank: int, connection: Any) -> None:
        """Handle the message of a rank, or the end of its connection."""
        message = _read(connection)
        if "done" in message:
            return
        if "end" in message:
            self.status = message["end"]
            self.over.set()
        elif self.info.rank == 0:
            sentence = message.get("failed") or self._lost(rank)
            if message and not message["expected"]:  # often caused by another rank, which may report first
                threading.Timer(DELAY_SECONDS / 2, self._end, (message["status"], sentence)).start()
            else:
                self._end(message.get("status", 1), sentence)
        else:
            self.status = 1
            if self.info.rank == 1:
                print(f"genlab: {self._lost(0)}", file=sys.stderr, flush=True)
            self.over.set()

    def _lost(self, rank: int) -> str:
        return f"rank {rank} of {self.info.world_size} is gone: it was killed, most often for want of memory"

    def _send(self, rank: int, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the other rank has ended
            self._connections[rank].sendall(json.dumps(message).encode() + b"\n")

    def _wait_for_others(self, candidates: list[int], deadline: float) -> TCPStore:
        """On rank zero: accept one connection of every other rank of this step."""
        listener = _listen_on_first_free(candidates)
        store = TCPStore(self.info.address, 0, is_master=True, wait_for_workers=False)
        with listener:
            while len(self._connections) < self.info.world_size - 1:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    missing = sorted(set(range(1, self.info.world_size)) - set(self._connections))
                    raise RunError(
                        f"{len(self._connections) + 1} of {self.info.world_size} processes have met, and rank "
                        f"{missing[0]} has not come: see its output, and check that the machines reach one another"
                    ) from None
                connection.settimeout(ANSWER_SECONDS)
                hello = _read(connection)
                if hello.get("key") != self.info.key:
                    connection.close()  # a rank of another step, or another program
                    continue
                self._connections[hello["rank"]] = connection
                self._send(hello["rank"], {"store": store.port})
                _keep_open(connection)
        return store

    def _find_rank_zero(self, candidates: list[int], deadline: float) -> TCPStore:
        """On the other ranks: try the ports until rank zero of this step answers."""
        while time.monotonic() < deadline:
            for port in candidates:
                with contextlib.suppress(OSError):
                    connection = socket.create_connection((self.info.address, port), timeout=ANSWER_SECONDS)
                    self._connections[0] = connection
                    self._send(0, {"key": self.info.key, "rank": self.info.rank})
                    answer = _read(connection)
                    if "store" in answer:
                        _keep_open(connection)
                        return TCPStore(self.info.address, answer["store"], is_master=False)
                    connection.close()
            time.sleep(0.1)
        raise RunError(
            f"rank {self.info.rank} of {self.info.world_size} has not found rank 0 at {self.info.address}: see "
            "its output, and check that the machines reach one another"
        )


def _listen_on_first_free(candidates: list[int]) -> socket.socket:
    for port in candidates:
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), backlog=1024)
    raise RunError(f"none of the ports {', '.join(map(str, candidates))} is free for the ranks to meet at")


def _keep_open(connection: socket.socket) -> None:
    """Lift the time limit. Keep-alive messages notice after some minutes that a machine has lost its power."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)


def _read(connection: socket.socket) -> dict[str, Any]:
    """The next message; {} if the other end is closed or sends something else."""
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < 100_000:
            piece = connection.recv(1)
            if not piece:
                return {}
            text += piece
        message = json.loads(text)
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}


def _exit_now(status: int) -> None:
    """End without the destructors of a process group, which hang or abort when other ranks are gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
