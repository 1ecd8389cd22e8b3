"""Rank of this process and size of its group, read from the environment variables that its launcher sets.

torchrun and `launch.ranks` set RANK and WORLD_SIZE. srun sets SLURM_STEP_…: the variables of the *step*, the tasks that
one srun has started. The variables of the *job* (SLURM_NTASKS, SLURM_PROCID) do not help: a batch script has them too,
although it is a single process. Lightning's SLURMEnvironment reads the variables of the job, so ours replaces it. Every
function here depends on the environment only, so it can be tested without a cluster.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from genlab.core import RequestError

LOCAL = "127.0.0.1"
PORTS = range(15000, 32000)  # below the ports that a system assigns by itself (Linux: 32768 and up)


@dataclass(frozen=True)
class RankInfo:
    """Rank `rank` of `world_size`, number `local_rank` of the `local_world_size` ranks on this machine.

    `address`: the machine of rank zero. `starter`: "alone", "torchrun" or "srun". `key`: a text that differs between
    any two steps, and between two starts of one step.
    """

    starter: str = "alone"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = LOCAL
    key: str = ""


def rank_info(env: Mapping[str, str]) -> RankInfo:
    """Read the variables `env`. Raises RequestError if machines have different numbers of tasks."""
    if "RANK" in env and int(env.get("WORLD_SIZE", 1)) > 1:
        world_size = int(env["WORLD_SIZE"])
        address = env.get("MASTER_ADDR", LOCAL)
        restarts = env.get("TORCHELASTIC_RESTART_COUNT", "0")
        return RankInfo(
            starter="torchrun",
            rank=int(env["RANK"]),
            world_size=world_size,
            local_rank=int(env.get("LOCAL_RANK", 0)),
            local_world_size=int(env.get("LOCAL_WORLD_SIZE", world_size)),
            address=address,
            key=f"torchrun {address} {env.get('MASTER_PORT')} {restarts}",
        )
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env or int(env.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return RankInfo()
    world_size = int(env["SLURM_STEP_NUM_TASKS"])
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)))
    if len(set(counts)) > 1:
        raise RequestError(
            f"srun has placed {', '.join(map(str, counts))} tasks on the machines of this step, and every machine must "
            "have the same number: give srun --ntasks-per-node"
        )
    nodes = env.get("SLURM_STEP_NODELIST", "")
    address = LOCAL if len(counts) == 1 else env.get("MASTER_ADDR") or first_host(nodes)
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    return RankInfo(
        starter="srun",
        rank=int(env["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(env["SLURM_LOCALID"]),
        local_world_size=counts[0],
        address=address,
        key=f"srun {env.get('SLURM_JOB_ID')} {env['SLURM_STEP_ID']} {restarts}",
    )


def tasks_per_node(text: str) -> list[int]:
    """SLURM's "2(x3),1" -> [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()).groups()  # type: ignore[union-attr]
        counts += [int(count)] * int(times or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first machine of SLURM's list: "gpu[03-05,9]-ib,login" -> "gpu03-ib"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes).group()  # type: ignore[union-attr]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def ports(key: str, preferred: str | None = None, tries: int = 16) -> Iterator[int]:
    """The ports on which the ranks of a step meet: equal on every rank of a step, different for every step.

    Rank zero listens on the first free port. The others try the ports until rank zero of their step answers.
    """
    if preferred:
        yield int(preferred)
    for number in range(tries):
        yield PORTS[zlib.crc32(f"{key} {number}".encode()) % len(PORTS)]
