"""The group of ranks that this process belongs to: its members, how to join it, and how all ranks fail together.

The ranks were started by `launch.ranks`, by torchrun or by srun (`rank_info.py`). A process without
others is a group of one, and then every function here returns at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from genlab.core import RequestError, RunError
from genlab.processes.failure_detector import FailureDetector
from genlab.processes.rank_info import RankInfo, rank_info

DISTRIBUTED = ("train", "resume", "eval")  # verbs whose work is shared between ranks

T = TypeVar("T")
_detectors: list[FailureDetector] = []  # at most one


def this_rank() -> RankInfo:
    """Rank and group of this process. A task of srun that sees one GPU of its own counts as a machine of its own."""
    info = rank_info(os.environ)
    if info.starter == "srun" and info.local_world_size > 1 == torch.cuda.device_count():
        return replace(info, local_rank=0, local_world_size=1)
    return info


def world_size() -> int:
    """Number of ranks of the group; 1 for a single process."""
    return this_rank().world_size


def local_world_size() -> int:
    """Number of the group's ranks on this machine."""
    return this_rank().local_world_size


def run_verb(verb: str, work: Callable[[], T]) -> T:
    """Run `work` of a verb. Under torchrun or srun, if any rank fails, all ranks end, and one sentence is printed."""
    if world_size() == 1 or "GENLAB_PARENT" in os.environ:
        return work()
    if verb not in DISTRIBUTED:
        if this_rank().rank:
            raise SystemExit(2)
        raise RequestError(f"genlab {verb} is one process: start it without torchrun, and with srun -n 1")
    detector = detect_failures()
    try:
        value = work()
    except BaseException as error:
        if detector.report_failure(error):
            raise
        raise SystemExit(detector.status) from error
    detector.report_done()
    return value


def detect_failures() -> FailureDetector:
    """Connect to the other ranks, once."""
    if not _detectors:
        _detectors.append(FailureDetector(this_rank(), os.environ))
    return _detectors[0]


def join(accelerator: str) -> None:
    """Make the process group of torch.distributed, with NCCL for tensors on GPUs and gloo for tensors on CPUs."""
    if world_size() == 1 or dist.is_initialized():
        return
    info = this_rank()
    if accelerator == "gpu":
        torch.cuda.set_device(info.local_rank)
    backend = "cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo"
    store = dist.PrefixStore("genlab", detect_failures().store) if info.starter == "srun" else None
    dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.world_size)


def is_rank_zero() -> bool:
    """True on the rank that writes and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_rank_zero(function: Callable[[], Any]) -> Any:
    """Call on rank zero only. Every rank gets the value, or the RequestError or RunError that was raised there."""
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
